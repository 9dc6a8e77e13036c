"""`make bench` from end to end, shortened, and its SQL for peers beside the named queries on the demo."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from bi_query.catalogue import load_catalogue
from bi_query.catalogue_dir import demo_catalogue_dir
from bi_query.parameters import bind
from bi_query.snapshot_files import read_pointer, snapshot_path

from loadtest.bench.check import difference
from loadtest.bench.portable_sql import KINDS
from loadtest.bench.report import PEERS
from loadtest.bench.systems.base import PEERS_BIN
from loadtest.bench.workload import distinct

ROOT = Path(__file__).parents[2]
SERVICE_ROWS = {"hit", "hit_redis", "fastapi", "asgi", "miss", "miss_mixed", "mixed_service"}


def rows_of(connection: duckdb.DuckDBPyConnection, sql: str, params: object = None) -> list[dict[str, object]]:
    result = connection.execute(sql, params)
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_sql_that_peers_get_gives_the_named_querys_numbers(demo_snapshots: Path, kind: str) -> None:
    pointer = read_pointer(demo_snapshots)
    assert pointer is not None
    query = load_catalogue(demo_catalogue_dir()).queries[kind]
    with duckdb.connect(str(snapshot_path(demo_snapshots, pointer.snapshot_id)), read_only=True) as connection:
        for question in itertools.islice(distinct((kind,)), 25):
            expected = rows_of(connection, query.sql, bind(query.parameters, question.asked.items()))
            assert difference(expected, rows_of(connection, question.sql())) is None, question


def test_a_short_run_measures_every_row_and_its_ratios_follow_from_its_rounds(
    demo_snapshots: Path, tmp_path: Path
) -> None:
    for program in ("wrk", "redis-server"):
        if shutil.which(program) is None:
            reason = f"{program} is not installed (apt-get install {program}); the benchmark needs it"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    with_peers = (PEERS_BIN / "roapi").exists()
    command = [sys.executable, "-m", "loadtest.bench", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(
        command if with_peers else [*command, "--without-peers"],
        cwd=ROOT, env={**os.environ, "BI_SNAPSHOT_DIR": str(demo_snapshots)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]

    results = json.loads((tmp_path / "results.json").read_text())
    wanted = SERVICE_ROWS | ({f"mixed_{peer}" for peer in PEERS} if with_peers else set())
    assert wanted <= results["rounds"].keys()
    assert all(len(rounds) == results["method"]["rounds"] for rounds in results["rounds"].values())
    assert all(one["refused"] == 0 for name in SERVICE_ROWS for one in results["rounds"][name])
    rate = {
        name: statistics.median(one["requests_per_second"] for one in rounds)
        for name, rounds in results["rounds"].items()
    }
    assert results["ratios"]["hit_vs_asgi"] == pytest.approx(rate["hit"] / rate["asgi"])
    alone = max(rate[name] for name in rate if name.startswith("duckdb_threads_"))
    assert results["ratios"]["miss_vs_duckdb"] == pytest.approx(rate["miss"] / alone)
    if with_peers:
        assert results["ratios"]["mixed_vs_brief"] == pytest.approx(rate["mixed_service"] / rate["mixed_brief"])
        assert results["method"]["questions_compared"] > 0
    table = (tmp_path / "RESULTS.md").read_text()
    assert all(results["titles"][name] in table for name in results["rounds"])
    assert all(text in table for text in results["given"].values())
