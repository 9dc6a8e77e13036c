"""The README is run: its commands exist, its answers are the service's, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.service import Service

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```console\n\$ (.+?)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_readme_has_examples() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize(("command", "shown"), EXAMPLES, ids=[command[:60] for command, _ in EXAMPLES])
def test_an_example_answers_what_the_readme_shows(demo_service: Service, command: str, shown: str) -> None:
    assert command.startswith("curl ")
    run = ["bash", "-o", "pipefail", "-c", command.replace("http://127.0.0.1:8000", demo_service.url)]
    answer = subprocess.run(run, capture_output=True, check=True, timeout=60, text=True).stdout
    assert answer.splitlines() == shown.splitlines()


def test_every_make_target_the_readme_names_exists() -> None:
    makefiles = (ROOT / "Makefile").read_text() + (ROOT / "stack.mk").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefiles, re.MULTILINE))
    named = set(re.findall(r"`?\bmake ([a-z-]+)`", README)) | set(
        re.findall(r"^(?:\S+=\S+ )?make ([a-z-]+)$", README, re.MULTILINE)
    )
    assert {"serve", "test"} <= named <= targets


def test_every_target_has_a_line_of_help() -> None:
    helped = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    phony = " ".join(
        re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text() + (ROOT / "stack.mk").read_text(), re.MULTILINE)
    )
    assert set(phony.split()) == {line.split()[1] for line in helped.splitlines()}


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md")]), ids=lambda page: page.name
)
def test_relative_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_every_module_stands_in_the_architecture_page_s_table() -> None:
    package = ROOT / "services/query/src/bi_query"
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    modules |= {path.parent.name for path in package.glob("*/__init__.py")}
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = page[page.index("| module") : page.index("## Worth knowing")]
    named = {
        name for cell in re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }
    assert modules == named


def test_every_runtime_dependency_stands_in_the_readme_s_table() -> None:
    declared = re.search(
        r"^dependencies = \[(.*?)\]", (ROOT / "services/query/pyproject.toml").read_text(), re.DOTALL | re.MULTILINE
    )
    assert declared is not None
    table = README[README.index("| package") :]
    names = re.findall(r'"([a-z0-9-]+)', declared.group(1))
    assert names
    assert [name for name in names if name not in table] == []
