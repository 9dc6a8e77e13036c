"""The scripts that containers of the service start with, run here on folders of the test's own."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DAY_SECONDS = 86_400


class Replica:
    """infra/query/entrypoint.sh with its volumes in a folder; what it would start says only that it was."""

    def __init__(self, folder: Path) -> None:
        self.spill, self.audit = folder / "bi/spill", folder / "bi/audit"
        for made in (self.spill, self.audit, folder / "bin"):
            made.mkdir(parents=True)
        (folder / "bin/bi-query").write_text('#!/bin/sh\necho "started $*, audit log $BI_AUDIT_LOG"\n')
        (folder / "bin/bi-query").chmod(0o755)
        (folder / "hostname").write_text("0123456789ab\n")
        text = (ROOT / "infra/query/entrypoint.sh").read_text()
        for named, here in (("/var/lib/bi", folder / "bi"), ("/etc/hostname", folder / "hostname")):
            assert named in text
            text = text.replace(named, str(here))
        self._script = folder / "entrypoint.sh"
        self._script.write_text(text)
        self._path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def start(self, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", self._script, "serve"],
            env={"PATH": self._path, **settings}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def log(self, name: str, *, days_old: float) -> Path:
        path = self.audit / name
        path.write_text("{}\n")
        written = time.time() - days_old * DAY_SECONDS
        os.utime(path, (written, written))
        return path


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    return Replica(tmp_path)


@pytest.fixture
def living(replica: Replica) -> Iterator[str]:
    """The name of another replica that lives: it holds the lock on its folder of spilled data."""
    name = "aaaaaaaaaaaa"
    (replica.spill / name).mkdir()
    with (replica.spill / name / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield name


def test_audit_logs_of_replicas_long_gone_go_and_no_others(replica: Replica, living: str) -> None:
    gone = [replica.log(f"bbbbbbbbbbbb.jsonl{end}", days_old=100) for end in ("", ".1", ".2")]
    orphan = replica.log("eeeeeeeeeeee.jsonl.1", days_old=100)
    kept = [
        replica.log("cccccccccccc.jsonl", days_old=80),
        replica.log("cccccccccccc.jsonl.1", days_old=300),  # an older part of what was still written 80 days ago
        replica.log(f"{living}.jsonl", days_old=300),
        replica.log(f"{living}.jsonl.1", days_old=400),
        replica.log("0123456789ab.jsonl", days_old=300),  # its own, after a restart of the same container
        replica.log("notes.txt", days_old=300),
    ]
    run = replica.start()
    assert run.returncode == 0, run.stderr
    assert f"started serve, audit log {replica.audit}/0123456789ab.jsonl" in run.stdout
    assert [path.name for path in [*gone, orphan] if path.exists()] == []
    assert [path.name for path in kept if not path.exists()] == []


def test_how_long_audit_logs_of_gone_replicas_stay_is_a_setting(replica: Replica) -> None:
    log = replica.log("bbbbbbbbbbbb.jsonl", days_old=3)
    assert replica.start(BI_AUDIT_DAYS_KEPT="4").returncode == 0 and log.exists()
    assert replica.start(BI_AUDIT_DAYS_KEPT="2").returncode == 0 and not log.exists()


@pytest.mark.parametrize("days", ["0", "-1", "ninety", "1.5"])
def test_days_that_are_no_days_are_refused_and_nothing_is_removed(replica: Replica, days: str) -> None:
    log = replica.log("bbbbbbbbbbbb.jsonl", days_old=1000)
    run = replica.start(BI_AUDIT_DAYS_KEPT=days)
    assert run.returncode == 2 and "whole number of days" in run.stderr
    assert log.exists()


def test_what_a_killed_replica_spilled_goes_and_a_living_ones_stays(replica: Replica, living: str) -> None:
    (replica.spill / "dddddddddddd").mkdir()
    assert replica.start().returncode == 0
    assert sorted(path.name for path in replica.spill.glob("*/")) == ["0123456789ab", living]


def test_the_keys_of_a_load_test_end_when_it_is_told_so(tmp_path: Path) -> None:
    text = (ROOT / "infra/query/loadtest-keys.sh").read_text()
    assert "--count 1000" in text
    script = tmp_path / "loadtest-keys.sh"
    script.write_text(text.replace("/run/loadtest", str(tmp_path)).replace("--count 1000", "--count 2"))
    settings = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "BI_KEYS_FILE": str(tmp_path / "keys.json"),
        "BI_CATALOGUE_DIR": str(ROOT / "services/query/catalogue"),
    }

    def run(*command: str | Path) -> str:
        return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120, check=True).stdout

    run("bi-query", "keys", "add", "ana")
    run("sh", script)
    assert len((tmp_path / "keys").read_text().split()) == 2 and "loadtest" in run("bi-query", "keys", "list")
    run("sh", script, "end")
    listed = run("bi-query", "keys", "list")
    assert "ana" in listed and "loadtest" not in listed
    assert not (tmp_path / "keys").exists()


# --- infra/llm/pull.sh ----------------------------------------------------------------------------------------------

OLLAMA = """#!/bin/sh
case $1 in
    serve) [ ! -e {folder}/broken ] || {{ echo "no such folder: /models"; exit 1; }}; : >{folder}/serving; exec sleep 60 ;;
    list) [ -e {folder}/serving ] ;;
    pull) echo "pulled $2" ;;
esac
"""


def pull(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script with a model server of the test's own."""
    (folder / "bin").mkdir()
    (folder / "bin/ollama").write_text(OLLAMA.format(folder=folder))
    (folder / "bin/ollama").chmod(0o755)
    text = (ROOT / "infra/llm/pull.sh").read_text()
    assert "log=/tmp/serve.log" in text
    script = folder / "pull.sh"
    script.write_text(text.replace("/tmp/serve.log", str(folder / "serve.log")))
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", script, *arguments], env={"PATH": path}, capture_output=True, text=True, timeout=30, check=False
    )


def test_a_model_is_fetched_once_its_server_answers(tmp_path: Path) -> None:
    run = pull(tmp_path, "some:4b")
    assert (run.returncode, run.stdout) == (0, "pulled some:4b\n"), run.stderr


@pytest.mark.parametrize("arguments", [(), ("",)], ids=["none", "an empty BI_LLM_MODEL"])
def test_without_a_models_name_nothing_is_fetched_and_the_setting_is_named(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    run = pull(tmp_path, *arguments)
    assert run.returncode == 2 and "BI_LLM_MODEL" in run.stderr


def test_a_model_server_that_ends_is_told_with_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    run = pull(tmp_path, "some:4b")
    assert run.returncode == 1 and "no such folder: /models" in run.stderr
