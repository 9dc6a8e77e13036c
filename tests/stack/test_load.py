"""`make load`: in its container, and from outside as it says for what its container cannot do."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.service import wait_until
from tests.support.small import Small
from tests.support.stack import ROOT, Stack, volume_files

REPORTS = ROOT / "loadtest/reports"
SHORT = ["--users", "4", "--seconds", "20", "--publish-every", "4", "--queries", "shops"]


def publish(stack: Stack) -> None:
    stack.compose("run", "--rm", "-T", "--no-deps", "publish", "publish", timeout=60)


def environment_of(stack: Stack) -> dict[str, str]:
    """For make, and for a make that another one has started, which says more. `republish` finds the images by itself."""
    files = [str(file) for file in stack.env_file or []]
    return {**os.environ, "BI_ENV_FILE": files[-1], "COMPOSE_PROJECT_NAME": stack.project, "MAKELEVEL": "1"}


def told_by_make(environment: dict[str, str]) -> list[str]:
    """The commands that `make load SCENARIO=publish` tells, in their order."""
    command = ["make", "load", "SCENARIO=publish"]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = told.stderr.replace("\\\n", "").splitlines()
    return [line.strip() for line in lines if line.startswith("  ")]


def current(stack: Stack) -> str:
    """The snapshot that the pointer names."""
    return str(json.loads(volume_files(stack, "snapshots")["current.json"])["snapshot_id"])


@pytest.mark.parametrize(
    ("scenario", "more", "code", "missed"),
    [("cold", "", 0, set()), ("soak", " --no-cache", 1, {"hit_rate"})],  # nothing looked up is no hit rate
)
def test_the_exit_code_of_make_load_is_the_verdict_of_its_container(
    stack: Stack, scenario: str, more: str, code: int, missed: set[str]
) -> None:
    before = set(REPORTS.glob("*"))
    command = ["make", "load", f"SCENARIO={scenario}", f"ARGS=--users 4 --seconds 15 --queries shops{more}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment_of(stack), capture_output=True, text=True, timeout=600, check=False
    )
    told = done.stdout[-3000:] + done.stderr[-2000:]
    made = set(REPORTS.glob("*")) - before  # of the stack's earlier runs, too
    reports = [json.loads(path.read_text()) for path in made if path.match(f"{scenario}-*.json")]
    for path in made:
        path.unlink()
    assert len(reports) == 1, told
    (report,) = reports
    outcomes = {row["slo"]: row["outcome"] for row in report["verdict"]}
    assert {name for name, outcome in outcomes.items() if outcome not in ("met", "not judged")} == missed, told
    # make's own word for a command that ended so is 2.
    assert (done.returncode, f"Error {code}" in done.stderr) == ((0, False) if code == 0 else (2, True)), told


def test_the_commands_that_make_load_names_for_scenario_publish_work(
    stack: Stack, small_data: Small, tmp_path: Path
) -> None:
    for version in (3, 2):  # two snapshots to change between
        small_data.write_data(version)
        publish(stack)
    newest = current(stack)
    environment, keys = environment_of(stack), tmp_path / "load-keys.txt"
    make_keys, load, *after = told_by_make(environment)

    def here(command: str) -> str:
        return command.replace(".venv/bin/python", sys.executable).replace(".stack/load-keys.txt", str(keys))

    def shell(command: str) -> None:
        subprocess.run(["sh", "-c", here(command)], cwd=ROOT, env=environment, capture_output=True, check=True)

    shell(make_keys)
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600, "others could read the keys"
    mine = {"X-API-Key": keys.read_text().split()[0]}
    for replica in stack.replicas().values():  # they look for new keys from time to time
        wait_until(
            lambda url=replica: httpx.get(f"{url}/api/v1/queries", headers=mine, timeout=10).status_code == 200,
            what="the key",
        )
    command = [*shlex.split(here(load)), *SHORT, "--reports", str(tmp_path)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
        )
    finally:
        for line in after:
            shell(line)
    assert current(stack) == newest, "the older data stayed"
    assert not keys.exists()
    # The rest of its verdict is that of a busy machine with queries that are slow on purpose.
    assert list(tmp_path.glob("*.json")), done.stdout[-3000:] + done.stderr[-2000:]
    (report,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    (row,) = (row for row in report["verdict"] if row["slo"] == "publishes")
    assert row["outcome"] == "met", (row, done.stdout[-3000:], done.stderr[-2000:])
