"""One round of one system: wrk over a list of requests, or threads over a list of queries; and who used the processor."""

from __future__ import annotations

import itertools
import os
import re
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import duckdb

from ..measured import percentile

HERE = Path(__file__).parent
CONNECTIONS = 30
TIMEOUT_SECONDS = 10

Figures = dict[str, float]
Reading = Callable[[], Mapping[str, float]]
Job = tuple[str, Mapping[str, object]]


def write_requests(path: Path, requests: Iterable[bytes]) -> Path:
    """Requests as walk.lua reads them."""
    with path.open("wb") as file:
        for request in requests:
            file.write(b"%d\n" % len(request))
            file.write(request)
    return path


def wrk(requests: Path, url: str, seconds: float, readings: Iterable[Reading] = ()) -> Figures:
    """Ask for `seconds` over `CONNECTIONS` connections. Rates count good answers only; times are ms.

    `readings` are counters read before and after; their differences are in the result. `timeouts` counts connections that
    waited longer than `TIMEOUT_SECONDS`.
    """
    before = [reading() for reading in readings]
    children = _children_seconds()
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", f"--timeout={TIMEOUT_SECONDS}s"]
    command += ["-s", str(HERE / "walk.lua"), url, "--", str(requests)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"^RESULT (.+)$", done.stdout, re.MULTILINE)
    assert found, f"wrk against {url}: {done.stdout}\n{done.stderr}"
    names = ("answers", "seconds", "p50_ms", "p95_ms", "p99_ms", "refused", "timeouts", "failed_sockets")
    figures: Figures = dict(zip(names, map(float, found.group(1).split()), strict=True))
    figures["requests_per_second"] = (figures["answers"] - figures["refused"]) / figures["seconds"]
    figures["cpu_wrk_seconds"] = _children_seconds() - children
    for reading, old in zip(readings, before, strict=True):
        figures |= {name: value - old[name] for name, value in reading().items()}
    return figures


class DuckDBAlone:
    """DuckDB by itself on a snapshot, at its best: as many Python threads as cores, a cursor each, SQL parsed once, rows
    fetched as the service fetches them (tuples), nothing encoded, nothing sent."""

    def __init__(self, snapshot: Path) -> None:
        self._connection = duckdb.connect(str(snapshot), read_only=True)
        self._workers = os.cpu_count() or 1

    def run(self, jobs: Sequence[Job], seconds: float, threads: int) -> Figures:
        """Run `jobs` in turn for `seconds`, DuckDB using `threads` threads for all queries together."""
        self._connection.execute(f"set threads = {threads}")
        turns, ended = itertools.count(), time.perf_counter() + seconds
        times: list[list[float]] = [[] for _ in range(self._workers)]

        def loop(mine: list[float]) -> None:
            cursor = self._connection.cursor()
            parsed = {sql: cursor.extract_statements(sql)[0] for sql in {sql for sql, _ in jobs}}
            while (started := time.perf_counter()) < ended:
                sql, params = jobs[next(turns) % len(jobs)]
                cursor.execute(parsed[sql], params).fetchall()
                mine.append((time.perf_counter() - started) * 1000)

        workers = [threading.Thread(target=loop, args=(mine,)) for mine in times]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        took, every = time.perf_counter() - started, sorted(itertools.chain(*times))
        quantiles = {f"p{share}_ms": percentile(every, share / 100) for share in (50, 95, 99)}
        return {"answers": len(every), "seconds": took, "requests_per_second": len(every) / took, **quantiles}

    def close(self) -> None:
        """Let the snapshot go."""
        self._connection.close()


def process_seconds(pid: int) -> float:
    """Processor seconds a process has used (Linux; 0 elsewhere)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
