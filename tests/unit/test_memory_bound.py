"""The bound on a process's memory: what is too much for it fails by itself, and what comes after works."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import bi_query.memory_bound
import pytest

MIB = 1024 * 1024
HOSTILE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (900 * 1024 * 1024, -1))
import duckdb
connection = duckdb.connect(config={"memory_limit": "400MB", "threads": 2})
for sql in ("select len(generate_series(1, 400000000))", "select len(repeat('x', 2000000000))"):
    for _ in range(5):
        try:
            connection.cursor().execute(sql).fetchall()
            sys.exit("it was answered")
        except duckdb.OutOfMemoryException:
            print("refused", len(bytes(50_000_000)))
"""


def test_what_duckdb_asks_of_the_system_is_refused_and_memory_is_left_for_the_rest() -> None:
    environment = {**os.environ, "DUCKDB_JE_MALLOC_CONF": "retain:false,dirty_decay_ms:1000,muzzy_decay_ms:0"}
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["refused 50000000"] * 10


@pytest.mark.parametrize(
    ("container", "machine", "wanted"), [(512, 8192, [512 * MIB]), (8192, 8192, [])], ids=["in one", "outside"]
)
def test_the_bound_is_the_containers_and_there_is_none_outside_of_one(
    container: int, machine: int, wanted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds: list[int] = []
    monkeypatch.setattr(bi_query.memory_bound, "available_memory_bytes", lambda: container * MIB)
    monkeypatch.setattr(bi_query.memory_bound, "physical_memory_bytes", lambda: machine * MIB)
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: bounds.append(limits[0]))
    bi_query.memory_bound.bound_memory()
    assert bounds == wanted
