"""Bills of materials in CycloneDX: the same image gives the same bytes, and what is written fits the standard's schema."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stack_tools import Failure, Json

from . import trivy
from .inventory import Image

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "sbom.bi-solution.invalid")
PACKAGES = {"deb", "apk", "rpm", "pypi", "golang", "npm"}


def of_image(image: Image, scan: Json) -> Json:
    """What a scan of an image found in it, dated like the image."""
    created = str(scan["Metadata"]["ImageConfig"].get("created", ""))
    return reproducible(trivy.cyclonedx(scan), subject=image.reference, content=image.id, timestamp=created)


def of_lock(lock: Path, subject: str) -> Json:
    """What a lock of Python packages names."""
    with TemporaryDirectory(prefix="bi-audit-") as folder:
        shutil.copy(lock, Path(folder) / "requirements.txt")  # the name Trivy knows it by
        document = trivy.locked_packages(Path(folder))
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    return reproducible(document, subject=subject, content=digest)


def reproducible(document: Json, *, subject: str, content: str, timestamp: str = "") -> Json:
    """The document without what differs from run to run: random ids, the hour of the run, the order."""
    described = document["metadata"]["component"]
    described["name"] = subject
    components = sorted(document.get("components", []), key=_without_ref)
    names: dict[str, str] = {}
    for number, component in enumerate([described, *components]):
        ref = component["bom-ref"]
        stable = f"{content} {number} {_without_ref(component)}"
        names[ref] = ref if ref.startswith("pkg:") else str(uuid.uuid5(_NAMESPACE, stable))
        component["bom-ref"] = names[ref]
    for dependency in document.get("dependencies", []):
        dependency["ref"] = names[dependency["ref"]]
        dependency["dependsOn"] = sorted(names[ref] for ref in dependency.get("dependsOn", []))
    document["components"] = sorted(components, key=lambda component: str(component["bom-ref"]))
    document["dependencies"] = sorted(document.get("dependencies", []), key=lambda entry: str(entry["ref"]))
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(_NAMESPACE, content)}"
    document["metadata"].pop("timestamp", None)
    if timestamp:
        document["metadata"]["timestamp"] = timestamp
    document.pop("vulnerabilities", None)  # an SBOM says what there is; what is known of it changes by the day
    return document


def _without_ref(component: Json) -> str:
    return json.dumps({name: value for name, value in component.items() if name != "bom-ref"}, sort_keys=True)


def write(document: Json, path: Path) -> int:
    """Write it; the number of packages in it. Raises `Failure` when it does not fit the schema, or names no package."""
    # Here, because it takes over a second, which audits have no use for.
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    wrong: Any = JsonStrictValidator(SchemaVersion.from_version(document["specVersion"])).validate_str(text)
    if wrong is not None:
        raise Failure(f"{path.name} does not fit CycloneDX {document['specVersion']}: {str(wrong)[:500]}")
    packages = [component for component in document["components"] if _type(component) in PACKAGES]
    if not packages:
        raise Failure(f"{path.name}: not one package was found in {document['metadata']['component']['name']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return len(packages)


def _type(component: Json) -> str:
    return str(component.get("purl", "")).removeprefix("pkg:").partition("/")[0]
