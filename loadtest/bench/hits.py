"""Cached hits beside a plain FastAPI route and a bare ASGI application, and misses beside DuckDB alone, in one run.

    make bench

Same machine, same server (uvicorn, uvloop, httptools), same bytes, 30 connections, rounds interleaved; medians and ratios.
The service runs with everything on: identity, quota, metrics, request log, ETag. Needs `wrk`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import duckdb
from bi_query.catalogue import load_catalogue
from bi_query.inputs import inputs
from bi_query.settings import load_settings
from bi_query.snapshot_files import read_pointer, snapshot_path

from tests.support.service import free_port, running, wait_until

HERE = Path(__file__).parent
ROUNDS, ROUND_SECONDS, CONNECTIONS = 5, 4, 30
QUERY = "top_products"
MISS_QUERY = "store_ranking"


def wrk(url: str, *headers: str) -> dict[str, float]:
    """One round: requests a second, p50, p95, p99 in ms, and answers that were not 2xx or 3xx."""
    script = HERE / "report.lua"
    options = [item for header in headers for item in ("-H", header)]
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{ROUND_SECONDS}s", "-s", str(script), *options, url]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"^RESULT (.+)$", out, re.MULTILINE)
    assert found, out
    names = ("requests_per_second", "p50_ms", "p95_ms", "p99_ms", "errors")
    return dict(zip(names, map(float, found.group(1).split()), strict=True))


def duckdb_alone(path: Path, sql: str, params: dict[str, object]) -> dict[str, float]:
    """The same SQL run back to back by as many threads as cores, each with its own cursor; rows fetched, nothing encoded."""
    threads = os.cpu_count() or 2
    counts = [0] * threads
    with duckdb.connect(str(path), read_only=True, config={"threads": threads}) as connection:
        end = time.perf_counter() + ROUND_SECONDS

        def loop(index: int) -> None:
            cursor = connection.cursor()
            while time.perf_counter() < end:
                cursor.execute(sql, params).fetchall()
                counts[index] += 1

        workers = [threading.Thread(target=loop, args=(index,)) for index in range(threads)]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return {"requests_per_second": sum(counts) / (time.perf_counter() - started)}


def main() -> int:
    """Measure, print a table, write results.json and RESULTS.md beside this file."""
    if shutil.which("wrk") is None:
        print("bench: wrk is needed (apt-get install wrk)", file=sys.stderr)
        return 1
    settings = load_settings()
    pointer = read_pointer(settings.snapshot_dir)
    if pointer is None:
        print("bench: nothing is published; run `make publish` first", file=sys.stderr)
        return 1
    query = load_catalogue(inputs(settings).catalogue_dir).queries[MISS_QUERY]
    values: dict[str, object] = {name: parameter.default for name, parameter in query.parameters.items()}
    snapshot = snapshot_path(settings.snapshot_dir, pointer.snapshot_id)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ("hit", "fastapi", "asgi", "miss", "duckdb")}
    with running(settings.snapshot_dir) as service, tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body"
        body.write_bytes(service.query(QUERY).content)
        peers = {name: _peer(name, body) for name in ("fastapi_app", "bare_app")}
        try:
            for number in range(ROUNDS):
                print(f"round {number + 1} of {ROUNDS}", file=sys.stderr, flush=True)
                rounds["hit"].append(wrk(f"{service.url}/api/v1/queries/{QUERY}"))
                rounds["fastapi"].append(wrk(peers["fastapi_app"][1]))
                rounds["asgi"].append(wrk(peers["bare_app"][1]))
                rounds["miss"].append(wrk(f"{service.url}/api/v1/queries/{MISS_QUERY}", "Cache-Control: no-cache"))
                rounds["duckdb"].append(duckdb_alone(snapshot, query.sql, values))
        finally:
            for process, _ in peers.values():
                process.terminate()
                process.wait()
    report(rounds)
    return 0


def _peer(factory: str, body: Path) -> tuple[subprocess.Popen[bytes], str]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", f"loadtest.bench.plain:{factory}", "--port", str(port)]
    options = ["--no-access-log", "--log-level", "error", "--loop", "uvloop", "--http", "httptools"]
    process = subprocess.Popen([*command, *options], env={**os.environ, "BENCH_BODY": str(body)})
    url = f"http://127.0.0.1:{port}/same-bytes"
    wait_until(
        lambda: subprocess.run(["curl", "-sf", "-o", os.devnull, url], check=False).returncode == 0, what=factory
    )
    return process, url


def report(rounds: dict[str, list[dict[str, float]]]) -> None:
    """Medians and ratios, to the screen and to files."""
    medians = {
        name: {key: statistics.median(one[key] for one in many) for key in many[0]} for name, many in rounds.items()
    }
    rate = {name: figures["requests_per_second"] for name, figures in medians.items()}
    ratios = {
        "hit_vs_asgi": rate["hit"] / rate["asgi"],
        "hit_vs_fastapi": rate["hit"] / rate["fastapi"],
        "miss_vs_duckdb": rate["miss"] / rate["duckdb"],
    }
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "duckdb": duckdb.__version__}
    document = {"machine": machine, "rounds": rounds, "medians": medians, "ratios": ratios}
    (HERE / "results.json").write_text(json.dumps(document, indent=2) + "\n")
    names = {
        "hit": f"this service, `{QUERY}` from memory, all features on",
        "fastapi": "plain FastAPI route, same bytes",
        "asgi": "bare ASGI application, same bytes",
        "miss": f"this service, `{MISS_QUERY}` computed on every request",
        "duckdb": f"DuckDB alone, the same SQL as `{MISS_QUERY}`, a thread a core",
    }
    lines = [
        f"Medians of {ROUNDS} interleaved rounds of {ROUND_SECONDS} s, {CONNECTIONS} connections, "
        f"{machine['cores']} cores, Python {machine['python']}, DuckDB {machine['duckdb']}.",
        "",
        "| | requests/s | p50 ms | p95 ms | p99 ms | errors |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, text in names.items():
        figures = medians[name]
        shown = [f"{figures[key]:.1f}" if key in figures else "" for key in ("p50_ms", "p95_ms", "p99_ms")]
        errors = f"{figures['errors']:.0f}" if "errors" in figures else ""
        lines.append(f"| {text} | {figures['requests_per_second']:.0f} | {' | '.join(shown)} | {errors} |")
    lines += [
        "",
        "| ratio | value |",
        "| --- | --- |",
        *(f"| {name} | {value:.2f} |" for name, value in ratios.items()),
    ]
    text = "\n".join(lines) + "\n"
    (HERE / "RESULTS.md").write_text("# Benchmark\n\nWritten by `make bench`.\n\n" + text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
