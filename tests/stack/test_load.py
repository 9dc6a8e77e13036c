"""The load test from outside of the stack, as `make load` says for what its container cannot do."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.support.service import wait_until
from tests.support.small import Small
from tests.support.stack import ROOT, Stack


def test_the_command_that_make_load_names_for_scenario_publish_works(
    stack: Stack, small_data: Small, tmp_path: Path
) -> None:
    for version in (3, 2):  # two snapshots to change between
        small_data.write_data(version)
        stack.compose("run", "--rm", "-T", "--no-deps", "publish", "publish", timeout=60)
    files = [str(file) for file in stack.env_file or []]
    # For make, then for compose by itself.
    named = {"BI_ENV_FILE": files[-1], "COMPOSE_ENV_FILES": ",".join(files), "COMPOSE_PROJECT_NAME": stack.project}
    environment = {**os.environ, **named}
    told = subprocess.run(
        ["make", "load", "SCENARIO=publish"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    words = told.stderr.replace("\\\n", "")
    make_keys, load = (
        shlex.split(line) for line in words.splitlines() if 'make keys ARGS="add' in line or "loadtest" in line
    )
    keys = tmp_path / "keys.txt"
    with keys.open("w") as file:
        subprocess.run(make_keys[: make_keys.index(">")], cwd=ROOT, env=environment, stdout=file, check=True)
    here = {".venv/bin/python": sys.executable, "keys.txt": str(keys)}
    command = [here.get(word, word) for word in load]
    command += ["--users", "4", "--seconds", "20", "--publish-every", "4", "--queries", "shops"]
    mine = {"X-API-Key": keys.read_text().split()[0]}
    for replica in stack.replicas().values():  # they look for new keys from time to time
        wait_until(
            lambda url=replica: httpx.get(f"{url}/api/v1/queries", headers=mine, timeout=10).status_code == 200,
            what="the key",
        )
    try:
        for _ in range(3):  # one that could not begin, because of what the tests before have left, is begun again
            done = subprocess.run(
                [*command, "--reports", str(tmp_path)],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=200,
                check=False,
            )
            if list(tmp_path.glob("*.json")):
                break
            time.sleep(20)
    finally:
        stack.compose("run", "--rm", "-T", "--no-deps", "publish", "publish", timeout=60)
        subprocess.run(
            ["make", "keys", "ARGS=revoke load"], cwd=ROOT, env=environment, capture_output=True, check=False
        )
    # The rest of its verdict is that of a busy machine with queries that are slow on purpose.
    assert list(tmp_path.glob("*.json")), done.stdout[-3000:] + done.stderr[-2000:]
    (report,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    (row,) = (row for row in report["verdict"] if row["slo"] == "publishes")
    assert row["outcome"] == "met", (row, done.stdout[-3000:], done.stderr[-2000:])
