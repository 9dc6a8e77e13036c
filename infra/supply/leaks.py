"""Secrets: in the layers of images, in what the repository ever held, and in what is about to be committed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from stack_tools import Failure, Json

from . import trivy
from .findings import Finding, Report

GIT_SECONDS = 300
_ADVICE = "Replace the secret, for it is known now; then take it out, or accept it with a reason if it never was one"


def in_scan(scan: Json, where: str) -> list[Finding]:
    """The secrets of a scan; a place is `<where>:<path>`, the image's own configuration without a path."""
    findings = []
    for result in scan.get("Results") or []:
        for secret in result.get("Secrets") or []:
            target = str(result["Target"])
            path = target if not target.endswith("image.tar") else "/configuration"
            what = f"{secret['Title']}, line {secret['StartLine']}: {' '.join(secret['Match'].split())[:120]}"
            findings.append(Finding(f"{where}:{path}", str(secret["RuleID"]), "secret", what, _ADVICE))
    return findings


def _git(folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=GIT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise Failure(f"git {arguments[0]} took longer than {GIT_SECONDS} s") from error
    if done.returncode != 0:
        raise Failure(f"git {arguments[0]}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return done.stdout


def in_repository(folder: Path, report: Report) -> None:
    """Add to the report every secret in any version of any file, in commit messages and in files not yet committed."""
    if _git(folder, "rev-parse", "--is-shallow-repository").strip() == b"true":
        report.undone.append("the repository's history: this clone is shallow (git fetch --unshallow)")
    with TemporaryDirectory(prefix="bi-audit-") as temporary:
        out = Path(temporary)
        blobs = _write_history(folder, out / "history")
        (out / "messages").write_bytes(_git(folder, "log", "--all", "--format=%H %an <%ae>%n%B"))
        _copy_uncommitted(folder, out / "uncommitted")
        scan = trivy.scan_secrets(out)
    report.notes.append(f"repository: {blobs} versions of files looked into")
    for finding in in_scan(scan, "repository"):
        report.findings.append(_where_it_was(finding))


def _write_history(folder: Path, out: Path) -> int:
    """Each version of each file as `history/<blob id>/<its path>`; how many."""
    paths: dict[str, str] = {}
    for line in _git(folder, "rev-list", "--objects", "--all").decode(errors="surrogateescape").splitlines():
        name, _, path = line.partition(" ")
        if path:
            paths.setdefault(name, path)
    packed = _git(folder, "cat-file", "--batch", stdin="\n".join(paths).encode())
    count = place = 0
    for name, path in paths.items():
        end = packed.index(b"\n", place)
        _, kind, size = packed[place:end].split()
        content = packed[end + 1 : end + 1 + int(size)]
        place = end + int(size) + 2
        if kind == b"blob":
            _write(out / name / path, content)
            count += 1
    return count


def _copy_uncommitted(folder: Path, out: Path) -> None:
    listed = _git(folder, "ls-files", "-z", "--others", "--modified", "--exclude-standard").decode(
        errors="surrogateescape"
    )
    for name in {name for name in listed.split("\0") if name}:
        source = folder / name
        if source.is_file() and not source.is_symlink():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, out / name)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _where_it_was(finding: Finding) -> Finding:
    """The place as the repository knows it: the path, and the blob that names the commits."""
    _, _, path = finding.where.partition(":")
    section, _, rest = path.partition("/")
    if section != "history":
        return Finding(f"repository:{rest or section}", finding.id, finding.kind, finding.what, finding.advice)
    blob, _, name = rest.partition("/")
    what = f"{finding.what} (git log --all --find-object={blob[:12]})"
    return Finding(f"repository:{name}", finding.id, finding.kind, what, finding.advice)
