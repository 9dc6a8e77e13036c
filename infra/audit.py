#!/usr/bin/env python3
"""`make sbom` and `make audit`: bills of materials, known vulnerabilities, pending security updates, secrets.

    audit.py sbom                       an SBOM of every image of the stack and of the service's locked dependencies
    audit.py locks images repository    what is known against them (all three when none is named)

Options: --accepted FILE (infra/supply/accepted.toml), --json FILE (the report for a program), --sboms FOLDER (sbom),
--lock FILE and --image NAME (only these; may be repeated), --repository FOLDER (this one).
Exit codes: 0 nothing found, 1 something found, 2 the audit itself failed, 3 nothing found but not everything could be
looked at (an advisory source out of reach, say). BI_AUDIT_OSV_URL: another OSV service to ask; BI_TRIVY: another Trivy;
TRIVY_DB_REPOSITORY: where Trivy gets its database.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
import sys
import traceback
from pathlib import Path

from stack_tools import ROOT, Failure, Json, Voice
from supply import debian, inventory, leaks, locks, sbom, trivy
from supply.findings import Exit, Finding, Report, load_accepted
from supply.inventory import Image

PARTS = ("locks", "images", "repository")
SERVICE_LOCK = ROOT / "services/query/requirements.lock"
voice = Voice("audit")


def images_here(only: list[str], report: Report) -> list[Image]:
    """The stack's images that the engine has; the others are told of."""
    reason = inventory.engine_answers()
    if reason:
        report.undone.append(f"the images: {reason}")
        return []
    named = [(name, name) for name in only] or inventory.stack_images()
    found = [inventory.with_id(name, reference) for name, reference in named]
    for image in [image for image in found if not image.id]:
        absent = inventory.why_absent(image.name)
        if absent:
            report.notes.append(f"{image.name}: {image.reference} is {absent}, and so not in here")
        else:
            report.undone.append(f"image {image.name}: {image.reference} is not on this machine (make images)")
    return [image for image in found if image.id]


def write_sboms(arguments: argparse.Namespace, report: Report) -> None:
    """One file per image, and one of what the service's lock names; with --lock or --image only of those."""
    every = not (arguments.lock or arguments.image)
    for lock in [SERVICE_LOCK] if every else arguments.lock:
        name = "service-python" if lock == SERVICE_LOCK else lock.stem
        _write_sbom(arguments.sboms, name, sbom.of_lock(lock, name))
    for image in images_here(arguments.image, report) if every or arguments.image else []:
        with inventory.archive(image) as tar:
            document = sbom.of_image(image, trivy.scan_image(tar))
        _write_sbom(arguments.sboms, image.name, document)


def _write_sbom(folder: Path, name: str, document: Json) -> None:
    path = folder / f"{re.sub(r'[^A-Za-z0-9.-]', '_', name)}.cdx.json"
    voice.say(f"{path}: {sbom.write(document, path)} packages")


def audit_images(only: list[str], report: Report) -> None:
    """Secrets, pending updates and known vulnerabilities of each image."""
    here = images_here(only, report)
    if not here:
        return
    try:
        trivy.fetch_database()
        database = True
    except Failure as failure:
        database = False
        report.undone.append(f"known vulnerabilities of the images' packages ({' '.join(str(failure).split())[-300:]})")
    scanned = []
    for image in here:
        with inventory.archive(image) as tar:
            scan = trivy.scan_image(tar, vulnerabilities=database)
        voice.say(f"looked into {image.name} ({image.reference})")
        report.findings += leaks.in_scan(scan, f"image {image.name}")
        report.findings += known_vulnerabilities(image.name, scan, report)
        scanned.append((image, scan))
    debian.pending(scanned, report)


def known_vulnerabilities(name: str, scan: Json, report: Report) -> list[Finding]:
    """Those that a release fixes; the others, which nobody can act upon, are counted."""
    known = [entry for result in scan.get("Results") or [] for entry in result.get("Vulnerabilities") or []]
    fixable = [entry for entry in known if entry.get("FixedVersion")]
    if len(known) > len(fixable):
        report.notes.append(
            f"image {name}: {len(known) - len(fixable)} known vulnerabilities that no release fixes yet"
        )
    return [
        Finding(
            f"image {name}", str(entry["VulnerabilityID"]), "vulnerability",
            f"{entry['PkgName']} {entry['InstalledVersion']}, {entry['Severity'].lower()}",
            f"Fixed in {entry['FixedVersion']}: pull or build the image anew",
        )
        for entry in fixable
    ]  # fmt: skip


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="audit.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"sbom, or of {', '.join(PARTS)}")
    parser.add_argument("--accepted", type=Path, default=ROOT / "infra/supply/accepted.toml")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sboms", type=Path, default=ROOT / "sbom")
    parser.add_argument("--lock", type=Path, action="append", default=[])
    parser.add_argument("--image", action="append", default=[])
    parser.add_argument("--repository", type=Path, default=ROOT)
    arguments = parser.parse_args()
    arguments.parts = arguments.parts or list(PARTS)
    unknown = set(arguments.parts) - {"sbom", *PARTS}
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}")
    return arguments


def run(arguments: argparse.Namespace) -> Report:
    """The parts that were asked for. Raises `Failure` when a tool fails."""
    accepted = load_accepted(arguments.accepted)
    report = Report()
    if not trivy.confinement() and set(arguments.parts) - {"locks"}:
        report.notes.append("Trivy ran with the network within reach: this kernel does not let this user take it away")
    if "sbom" in arguments.parts:
        write_sboms(arguments, report)
    if "locks" in arguments.parts:
        locks.audit_locks([path.resolve() for path in arguments.lock] or locks.all_locks(), report)
    if "images" in arguments.parts:
        audit_images(arguments.image, report)
    if "repository" in arguments.parts:
        leaks.in_repository(arguments.repository, report)
    report.settle(accepted, dt.datetime.now(dt.UTC).date())
    return report


def main() -> int:
    """Run, tell, and give the verdict as the exit code."""
    arguments = parsed()
    try:
        report = run(arguments)
        if arguments.json:
            arguments.json.write_text(json.dumps(report.document(), indent=1), encoding="utf-8")
    except Failure as failure:
        voice.say(f"FAILED: {failure}")
        return Exit.BROKEN
    except Exception as error:
        traceback.print_exc()  # and not Python's own exit code, 1, which says that something was found
        voice.say(f"FAILED: {type(error).__name__}: {error}")
        return Exit.BROKEN
    for line in report.lines():
        voice.say(line)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
