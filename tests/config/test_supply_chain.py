"""The audit of locks and repository, and bills of materials without an engine: that they fail when they should."""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.support.audit import BROKEN, CLEAN, FOUND, PYTHON, UNDONE, advisory_service, audit
from tests.support.service import free_port

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "infra"))
from stack_tools import Failure  # noqa: E402
from supply import leaks, locks  # noqa: E402
from supply.findings import Report  # noqa: E402
from supply.inventory import stack_images  # noqa: E402
from supply.locks import read_answer, releases  # noqa: E402

SERVICE_LOCK = ROOT / "services/query/requirements.lock"
# Of the public advisory database: https://osv.dev/vulnerability/PYSEC-2019-217
JINJA = {
    "id": "PYSEC-2019-217",
    "aliases": ["CVE-2019-10906"],
    "summary": "In Pallets Jinja before 2.10.1, str.format_map allows a sandbox escape.",
    "affected": [
        {
            "package": {"name": "jinja2", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.10.1"}]}],
        }
    ],
}
OLD = f"jinja2==2.10 \\\n    --hash=sha256:{'0' * 64}\nmarkupsafe==3.0.3 \\\n    --hash=sha256:{'1' * 64}\n"
# Made here, so that this file has none: of the forms that the service's keys and private keys have.
API_KEY = "bi_" + "0123456789ab" + "_" + "Zk3" * 14 + "Z"
PRIVATE_KEY = (
    "-----BEGIN EC "
    + "PRIVATE KEY-----\n"
    + "MHcCAQEEIB4xYh8c2Vw0s9kTqPz7r5Jm" * 2
    + "\n-----END EC "
    + "PRIVATE KEY-----\n"
)


def today() -> dt.date:
    return dt.datetime.now(dt.UTC).date()


@pytest.fixture
def old_lock(tmp_path: Path) -> Path:
    path = tmp_path / "old.lock"
    path.write_text(OLD)
    return path


def accepted(folder: Path, **entry: str) -> Path:
    lines = [f"{name} = {value if name == 'expires' else json.dumps(value)}" for name, value in entry.items()]
    path = folder / "accepted.toml"
    path.write_text("[[accepted]]\n" + "\n".join(lines) + "\n")
    return path


def jinja_accepted(folder: Path, until: dt.date) -> Path:
    reason = "templates are ours alone"
    return accepted(
        folder, kind="vulnerability", id="PYSEC-2019-217", where="*/old.lock", reason=reason, expires=str(until)
    )


def test_every_image_that_the_stack_names_is_looked_at_under_its_own_name() -> None:
    images = dict(stack_images())
    assert {"query", "redis", "prometheus", "caddy", "grafana", "llm"} <= images.keys()
    for name, reference in images.items():
        assert re.fullmatch(r"[a-z-]+", name), name
        assert re.fullmatch(r"[a-z0-9./_-]+:[\w.-]+", reference), reference


def test_a_lock_with_a_vulnerable_release_fails_and_names_the_advisory_and_the_fix(
    tmp_path: Path, old_lock: Path
) -> None:
    with advisory_service({("jinja2", "2.10"): [JINJA]}) as settings:
        run = audit(tmp_path, "locks", "--lock", old_lock, settings=settings)
    assert run.code == FOUND, run.output
    (finding,) = run.findings
    assert finding["id"] == "PYSEC-2019-217" and "CVE-2019-10906" in finding["what"]
    assert "jinja2 2.10 " in finding["what"] and "2.10.1" in finding["advice"]


def test_an_accepted_vulnerability_passes_on_its_last_day(tmp_path: Path, old_lock: Path) -> None:
    with advisory_service({("jinja2", "2.10"): [JINJA]}) as settings:
        run = audit(
            tmp_path, "locks", "--lock", old_lock, "--accepted", jinja_accepted(tmp_path, today()), settings=settings
        )
    assert run.code == CLEAN, run.output
    assert "templates are ours alone" in run.output


def test_an_acceptance_that_has_expired_fails_and_says_so(tmp_path: Path, old_lock: Path) -> None:
    yesterday = today() - dt.timedelta(days=1)
    with advisory_service({("jinja2", "2.10"): [JINJA]}) as settings:
        run = audit(
            tmp_path, "locks", "--lock", old_lock, "--accepted", jinja_accepted(tmp_path, yesterday), settings=settings
        )
    assert run.code == FOUND, run.output
    assert f"accepted until {yesterday}" in run.findings[0]["advice"]


def test_an_acceptance_holds_for_its_own_lock_only(tmp_path: Path, old_lock: Path) -> None:
    other = tmp_path / "other.lock"
    other.write_text(OLD)
    entries = jinja_accepted(tmp_path, today())
    with advisory_service({("jinja2", "2.10"): [JINJA]}) as settings:
        run = audit(tmp_path, "locks", "--lock", old_lock, "--lock", other, "--accepted", entries, settings=settings)
    assert run.code == FOUND
    assert [Path(finding["where"]).name for finding in run.findings] == ["other.lock"]


@pytest.mark.parametrize(
    "entry",
    [
        {"kind": "vulnerability", "id": "X-1", "where": "*", "reason": "no date"},
        {"kind": "vulnerability", "id": "X-1", "where": "*", "reason": " ", "expires": "2999-01-01"},
        {"kind": "secret", "id": "private-key", "where": "*"},
        {"kind": "secret", "id": "x", "where": "*", "reason": "y", "until": "2999-01-01"},
        {"kind": "nuisance", "id": "x", "where": "*", "reason": "y", "expires": "2999-01-01"},
    ],
    ids=["no date", "empty reason", "no reason", "unknown word", "unknown kind"],
)
def test_an_acceptance_that_is_not_complete_stops_the_audit(tmp_path: Path, entry: dict[str, str]) -> None:
    run = audit(tmp_path, "locks", "--accepted", accepted(tmp_path, **entry))
    assert run.code == BROKEN, run.output
    assert "entry 1" in run.output


def test_an_advisory_source_that_cannot_be_reached_is_told_loudly_and_has_its_own_exit_code(
    tmp_path: Path, old_lock: Path
) -> None:
    nowhere = {"BI_AUDIT_OSV_URL": f"http://127.0.0.1:{free_port()}/v1/query"}
    run = audit(tmp_path, "locks", "--lock", old_lock, settings=nowhere)
    assert run.code == UNDONE, run.output
    assert "NOT DONE" in run.output and "old.lock" in run.report["undone"][0]
    assert "NOT EVERYTHING WAS LOOKED AT" in run.output.splitlines()[-1]


def test_releases_that_the_index_does_not_know_count_as_not_audited() -> None:
    # What pip-audit ends with 0 and «No known vulnerabilities found» for, where the index has no advisories.
    skipped = [
        {"name": "jinja2", "skip_reason": "Dependency not found on PyPI and could not be audited: jinja2 (2.10)"}
    ]
    answered = [{"name": "MarkupSafe", "version": "3.0.3", "vulns": []}]
    wanted = {"jinja2": "2.10", "markupsafe": "3.0.3"}
    assert read_answer("x", wanted, {"dependencies": skipped + answered}) == (
        [],
        "no answer for 1 of 2 releases (jinja2)",
    )
    assert read_answer("x", wanted, {"dependencies": skipped})[1].startswith("it answered nothing")
    assert read_answer("x", {"markupsafe": "3.0.3"}, {"dependencies": answered}) == ([], "")


def test_every_lock_is_read_whole() -> None:
    for lock in ROOT.glob("**/requirements*.lock"):
        pinned = re.findall(r"^[a-zA-Z0-9][^=\s]*==[^;\n]*$", lock.read_text(), re.MULTILINE)
        assert len(releases(lock)) == len(pinned) > 0, lock


def test_every_release_of_every_lock_is_asked_about(tmp_path: Path) -> None:
    asked: set[tuple[str, str]] = set()
    with advisory_service({}, asked) as settings:
        run = audit(tmp_path, "locks", settings=settings)
    assert run.code == CLEAN, run.output
    every = [ROOT / "infra/images/caddy.lock", *ROOT.glob("*/**/requirements*.lock")]
    assert len(every) >= 6
    assert {release for lock in every for release in releases(lock).items()} <= asked


def test_the_locked_dependencies_can_be_asked_about_and_what_is_known_of_them_is_told(tmp_path: Path) -> None:
    run = audit(tmp_path, "locks", "--lock", SERVICE_LOCK, "--lock", ROOT / "loadtest/requirements.lock")
    assert run.code in (CLEAN, FOUND, UNDONE), run.output
    # An advisory of today says nothing about the change that is tested: it is printed here, and fails the weekly audit.
    for finding in run.findings:
        warnings.warn(f"{finding['where']}: {finding['id']}, {finding['what']}. {finding['advice']}", stacklevel=1)
    run.skip_what_was_not_done()
    assert (run.code == FOUND) == bool(run.findings)


def test_tools_that_take_too_long_are_a_failure_of_the_audit_and_no_finding(
    tmp_path: Path, old_lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "AUDIT_SECONDS", 0.01)
    monkeypatch.setattr(leaks, "GIT_SECONDS", 0.0001)
    report = Report()
    locks.audit_locks([old_lock], report)
    assert report.findings == [] and "took longer" in report.undone[0]
    with pytest.raises(Failure, match="took longer"):
        leaks.in_repository(ROOT, report)


def test_a_fault_of_the_audit_itself_does_not_have_the_exit_code_of_a_finding(tmp_path: Path) -> None:
    run = audit(tmp_path, "locks", "--lock", tmp_path / "absent.lock")
    assert run.code == BROKEN, run.output
    assert "absent.lock" in run.output.splitlines()[-1]


def repository(folder: Path) -> Path:
    folder.mkdir()
    git(folder, "init", "--quiet")
    commit(folder, "read.me", "nothing to see\n", "Begin")
    return folder


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.invalid", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True)


def commit(folder: Path, name: str, text: str | None, message: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "--quiet", "-m", message)


def test_a_secret_is_found_in_the_history_after_it_was_taken_out(tmp_path: Path) -> None:
    folder = repository(tmp_path / "r")
    commit(folder, "tests/examples/key.txt", f"key: {API_KEY}\n", "Add a key")
    commit(folder, "tests/examples/key.txt", None, "Take it out")
    run = audit(tmp_path, "repository", "--repository", folder)
    assert run.code == FOUND, run.output
    (finding,) = run.findings
    assert (finding["id"], finding["where"]) == ("bi-api-key", "repository:tests/examples/key.txt")
    assert API_KEY not in run.output, "the audit must not print what it found"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (PRIVATE_KEY, "private-key"),
        (f"url = 'redis://default:{'hunter' + '22'}@cache:6379/0'\n", "password-in-url"),
        (f"GRAFANA_PASSWORD={'Zk3f0b' * 4}\n", "assigned-secret"),
    ],
    ids=["private key", "password in an address", "environment file"],
)
def test_a_secret_is_found_before_it_is_committed(tmp_path: Path, text: str, rule: str) -> None:
    folder = repository(tmp_path / "r")
    (folder / "notes.txt").write_text(text)
    run = audit(tmp_path, "repository", "--repository", folder)
    assert run.code == FOUND, run.output
    assert {(finding["id"], finding["where"]) for finding in run.findings} == {(rule, "repository:notes.txt")}


def test_a_secret_is_found_in_a_commit_message(tmp_path: Path) -> None:
    folder = repository(tmp_path / "r")
    commit(folder, "a", "b\n", f"Works with {API_KEY} now")
    run = audit(tmp_path, "repository", "--repository", folder)
    assert [finding["where"] for finding in run.findings] == ["repository:messages"], run.output


def test_an_accepted_secret_needs_no_date_and_passes(tmp_path: Path) -> None:
    folder = repository(tmp_path / "r")
    commit(folder, "tests/key.pem", PRIVATE_KEY, "A key of the tests")
    entries = accepted(
        tmp_path, kind="secret", id="private-key", where="repository:tests/*.pem", reason="made for tests"
    )
    run = audit(tmp_path, "repository", "--repository", folder, "--accepted", entries)
    assert run.code == CLEAN, run.output


def test_a_clone_without_its_history_counts_as_not_looked_at(tmp_path: Path) -> None:
    folder = repository(tmp_path / "r")
    commit(folder, "a", "b\n", "More")
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{folder}", "shallow")
    run = audit(tmp_path, "repository", "--repository", tmp_path / "shallow")
    assert run.code == UNDONE and "shallow" in run.report["undone"][0], run.output


def test_this_repository_holds_no_secret_in_any_version(tmp_path: Path) -> None:
    run = audit(tmp_path, "repository")
    assert run.findings == [], run.output
    run.skip_what_was_not_done()


@pytest.fixture(scope="module")
def bill(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bill_of_materials(tmp_path_factory.mktemp("sbom"))


def bill_of_materials(folder: Path) -> bytes:
    run = audit(folder, "sbom", "--lock", SERVICE_LOCK, "--sboms", folder)
    assert run.code == CLEAN, run.output
    return (folder / "service-python.cdx.json").read_bytes()


def test_the_bill_of_materials_names_every_locked_release_and_is_the_same_twice(bill: bytes, tmp_path: Path) -> None:
    assert bill_of_materials(tmp_path) == bill
    document: dict[str, Any] = json.loads(bill)
    assert document["bomFormat"] == "CycloneDX" and float(document["specVersion"]) >= 1.5
    named = {component.get("purl") for component in document["components"]}
    assert {f"pkg:pypi/{name}@{version}" for name, version in releases(SERVICE_LOCK).items()} <= named


def test_a_bill_of_materials_that_does_not_fit_the_schema_is_not_written(bill: bytes, tmp_path: Path) -> None:
    document = json.loads(bill)
    document["components"][-1]["type"] = "gadget"
    (tmp_path / "wrong.json").write_text(json.dumps(document))
    code = (
        "import json, sys; from pathlib import Path; from supply import sbom; "
        "sbom.write(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))"
    )
    done = subprocess.run(
        [PYTHON, "-c", code, tmp_path / "wrong.json", tmp_path / "out.json"],
        env={"PYTHONPATH": str(ROOT / "infra")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "does not fit CycloneDX" in done.stderr
    assert not (tmp_path / "out.json").exists()
