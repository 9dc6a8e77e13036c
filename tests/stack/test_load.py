"""The load test from outside of the stack, as `make load` says for what its container cannot do."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import httpx

from tests.support.service import wait_until
from tests.support.small import Small
from tests.support.stack import ROOT, Stack

SHORT = ["--users", "4", "--seconds", "20", "--publish-every", "4", "--queries", "shops"]


def publish(stack: Stack) -> None:
    stack.compose("run", "--rm", "-T", "--no-deps", "publish", "publish", timeout=60)


def environment_of(stack: Stack) -> dict[str, str]:
    """For make, then for compose by itself; and for a make that another one has started, which says more."""
    files = [str(file) for file in stack.env_file or []]
    named = {"BI_ENV_FILE": files[-1], "COMPOSE_ENV_FILES": ",".join(files), "COMPOSE_PROJECT_NAME": stack.project}
    return {**os.environ, **named, "MAKELEVEL": "1"}


def told_by_make(environment: dict[str, str]) -> tuple[list[str], list[str]]:
    """The two commands that `make load SCENARIO=publish` tells: for keys, and the load test itself."""
    command = ["make", "load", "SCENARIO=publish"]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = told.stderr.replace("\\\n", "").splitlines()
    keys, load = (shlex.split(line) for line in lines if 'keys ARGS="add' in line or "-m loadtest" in line)
    return keys, load


def test_the_command_that_make_load_names_for_scenario_publish_works(
    stack: Stack, small_data: Small, tmp_path: Path
) -> None:
    for version in (3, 2):  # two snapshots to change between
        small_data.write_data(version)
        publish(stack)
    environment, keys = environment_of(stack), tmp_path / "keys.txt"
    make_keys, load = told_by_make(environment)
    with keys.open("w") as file:
        subprocess.run(make_keys[: make_keys.index(">")], cwd=ROOT, env=environment, stdout=file, check=True)
    mine = {"X-API-Key": keys.read_text().split()[0]}
    for replica in stack.replicas().values():  # they look for new keys from time to time
        wait_until(
            lambda url=replica: httpx.get(f"{url}/api/v1/queries", headers=mine, timeout=10).status_code == 200,
            what="the key",
        )
    here = {".venv/bin/python": sys.executable, "keys.txt": str(keys)}
    command = [*(here.get(word, word) for word in load), *SHORT, "--reports", str(tmp_path)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
        )
    finally:
        publish(stack)
        revoke = ["make", "keys", "ARGS=revoke load"]
        subprocess.run(revoke, cwd=ROOT, env=environment, capture_output=True, check=True)
    # The rest of its verdict is that of a busy machine with queries that are slow on purpose.
    assert list(tmp_path.glob("*.json")), done.stdout[-3000:] + done.stderr[-2000:]
    (report,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    (row,) = (row for row in report["verdict"] if row["slo"] == "publishes")
    assert row["outcome"] == "met", (row, done.stdout[-3000:], done.stderr[-2000:])
