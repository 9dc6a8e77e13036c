"""The locked Python dependencies against the advisories of PyPI, else of OSV, by pip-audit.

pip-audit takes "the index knows no such release" for harmless and ends with 0; behind a mirror that serves packages but no
advisories that would be every release. Here each release must have been answered for, else the lock counts as not audited.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from stack_tools import ROOT, Failure, Json, run

from .findings import Finding, Report

AUDIT_SECONDS = 600
ANSWER_SECONDS = 15
_NOTHING = "it answered nothing"
_RELEASE = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)([^\\\n]*)", re.MULTILINE)


def all_locks() -> list[Path]:
    """Every lock file of the repository."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "*.lock").split()
    return [ROOT / name for name in sorted(set(listed))]


def releases(lock: Path) -> dict[str, str]:
    """Names (as PyPI compares them) and versions that a lock gives for every platform."""
    found = _RELEASE.findall(lock.read_text(encoding="utf-8"))
    return {_normal(name): version for name, version, rest in found if ";" not in rest}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def services() -> list[tuple[str, ...]]:
    """The services to ask, as pip-audit's arguments, until one answers for everything."""
    own = os.environ.get("BI_AUDIT_OSV_URL", "")
    if own:
        return [("--vulnerability-service", "osv", "--osv-url", own)]
    return [("--vulnerability-service", "pypi"), ("--vulnerability-service", "osv")]


def audit_locks(locks: list[Path], report: Report) -> None:
    """Add to the report what is known against the locks' releases, or that it could not be asked."""
    wanted = {lock: releases(lock) for lock in locks}
    silent: dict[tuple[str, ...], str] = {}
    for lock in sorted(locks, key=lambda lock: -len(wanted[lock])):
        where = str(lock.relative_to(ROOT)) if lock.is_relative_to(ROOT) else str(lock)
        words = []
        for service in services():
            unanswered = silent.get(service) or _ask_one(service, lock, where, wanted[lock], report)
            if not unanswered:
                break
            if unanswered.startswith(_NOTHING):
                silent[service] = unanswered  # the smaller locks would hear no more
            words.append(f"{service[1]}: {unanswered}")
        else:
            report.undone.append(f"{where} was not audited for known vulnerabilities ({'; '.join(words)})")


def _ask_one(service: tuple[str, ...], lock: Path, where: str, wanted: dict[str, str], report: Report) -> str:
    """One service about one lock: its findings into the report, and what it left unanswered (empty when nothing)."""
    try:
        answer = _ask(lock, service)
    except Failure as failure:
        return f"{_NOTHING}: {failure}"
    findings, unanswered = read_answer(where, wanted, answer)
    report.findings += findings
    return unanswered


def _ask(lock: Path, service: tuple[str, ...]) -> Json:
    with TemporaryDirectory(prefix="bi-audit-") as folder:
        answer = Path(folder) / "answer.json"
        command = [
            sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--disable-pip", "--no-deps", *service,
            "--timeout", str(ANSWER_SECONDS), "--cache-dir", str(Path(folder) / "cache"),
            "--progress-spinner", "off", "--format", "json", "--desc", "off", "--output", str(answer),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=AUDIT_SECONDS, check=False, cwd=folder
            )
        except subprocess.TimeoutExpired as error:
            raise Failure(f"pip-audit took longer than {AUDIT_SECONDS} s") from error
        if not answer.is_file():
            raise Failure(_last_words(done.stderr) or f"pip-audit ended with {done.returncode}")
        document: Json = json.loads(answer.read_text(encoding="utf-8"))
        return document


def _last_words(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def read_answer(where: str, wanted: dict[str, str], answer: Json) -> tuple[list[Finding], str]:
    """Findings in pip-audit's answer, and what it left unanswered (empty when nothing)."""
    findings, answered, skipped = [], set(), []
    for entry in answer["dependencies"]:
        if "skip_reason" in entry:
            skipped.append(str(entry["name"]))
            continue
        answered.add(_normal(entry["name"]))
        for known in entry["vulns"]:
            fixed = ", ".join(known["fix_versions"])
            names = ", ".join(known.get("aliases", []))
            what = f"{entry['name']} {entry['version']}" + (f" (also known as {names})" if names else "")
            advice = (
                f"Fixed in {fixed}: make lock"
                if fixed
                else "No release fixes it yet: accept it for a time, or do without it"
            )
            findings.append(Finding(where, str(known["id"]), "vulnerability", what, advice))
    missing = sorted(set(wanted) - answered)
    if not missing:
        return findings, ""
    if len(missing) == len(wanted):
        return findings, f"{_NOTHING} but that it knows no such releases" if skipped else _NOTHING
    return findings, f"no answer for {len(missing)} of {len(wanted)} releases ({', '.join(missing[:5])})"
