"""Which images make up the stack here, and an archive of each to look into."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from stack_tools import IMAGES_ENV, ROOT, Failure, docker, setting

_VARIABLE = re.compile(r"\$\{(BI_[A-Z_]*_IMAGE):-([^}]+)\}")
_FIXED = re.compile(r"^\s*image:\s*([^\s$*&][^\s$]*)\s*$", re.MULTILINE)
SAVE_SECONDS = 600
BUILT_ON_DEMAND = {"loadtest": "not built yet (make load)", "llm": "not pulled yet (profile llm)"}


@dataclass(frozen=True)
class Image:
    """An image of the stack: what it is called there, its reference, and its id when the engine has it."""

    name: str
    reference: str
    id: str = ""


def found_setting(name: str, default: str) -> str:
    """What `make images` found has the last word, as for compose; then the user's setting, then the default."""
    lines = IMAGES_ENV.read_text(encoding="utf-8").splitlines() if IMAGES_ENV.is_file() else []
    found = [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]
    return found[-1] if found else setting(name, default)


def stack_images(folder: Path = ROOT) -> list[tuple[str, str]]:
    """Name and reference of every image that the compose files name."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("compose*.yaml"))]
    named: dict[str, str] = {}
    for variable, default in (pair for text in texts for pair in _VARIABLE.findall(text)):
        named[variable.removeprefix("BI_").removesuffix("_IMAGE").lower().replace("_", "-")] = found_setting(
            variable, default
        )
    for reference in (reference for text in texts for reference in _FIXED.findall(text)):
        named[reference.rpartition("/")[2].partition(":")[0]] = reference
    return sorted(named.items())


def with_id(name: str, reference: str) -> Image:
    """The image as the engine has it; without an id where it has none. Raises `Failure` when no engine answers."""
    listed = docker("image", "ls", "--no-trunc", "--format", "{{.ID}}", reference).split()
    return Image(name, reference, listed[0] if listed else "")


def why_absent(name: str) -> str:
    """Why the stack runs without this image here; empty when it should be here."""
    if found_setting(f"BI_{name.upper().replace('-', '_')}_REPLICAS", "") == "0":
        return "left out of the stack here, as make images says"
    return BUILT_ON_DEMAND.get(name, "")


@contextmanager
def archive(image: Image) -> Iterator[Path]:
    """The image with every layer as one file, for the length of a block."""
    with TemporaryDirectory(prefix="bi-audit-") as folder:
        path = Path(folder) / "image.tar"
        docker("save", "--output", str(path), image.reference, timeout=SAVE_SECONDS)
        yield path


def engine_answers() -> str:
    """Why there is no engine to ask; empty when there is one."""
    try:
        json.loads(docker("version", "--format", "{{json .Server.Version}}", timeout=30))
    except (Failure, ValueError) as failure:
        return f"no Docker engine answers ({str(failure).splitlines()[-1]}): make engine"
    return ""
