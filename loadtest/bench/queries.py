"""Engine time of every named query: median and 95th percentile in ms over a spread of parameter values.

    python -m loadtest.bench.queries [SECONDS_PER_QUERY]

Runs each query through the service's own engine (admission, casts, JSON encoding included) on the published snapshot, one
at a time, DuckDB using as many threads as there are cores.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import sys
import time
from collections.abc import Iterator

from bi_query.catalogue import NamedQuery, load_catalogue
from bi_query.engine import Engine
from bi_query.engine_call import Job
from bi_query.inputs import inputs
from bi_query.metrics import Metrics
from bi_query.parameters import Value
from bi_query.settings import load_settings
from bi_query.snapshot import Snapshot, SnapshotStore

SECONDS_PER_QUERY = 2.0


async def main(seconds_per_query: float) -> None:
    """Measure and print a table."""
    settings, metrics = load_settings(), Metrics()
    catalogue = load_catalogue(inputs(settings).catalogue_dir)
    store, engine = SnapshotStore(settings, metrics), Engine(settings, metrics)
    await store.refresh()
    print("| query | runs | default ms | median ms | p95 ms |\n| --- | --- | --- | --- | --- |")
    for query in catalogue.queries.values():
        default, times = await _measure(engine, store.current, query, seconds_per_query)
        p95 = statistics.quantiles(times, n=20)[-1]
        print(
            f"| {query.name} | {len(times)} | {default:.1f} | {statistics.median(times):.1f} | {p95:.1f} |", flush=True
        )
    await engine.close(0)
    store.close()


async def _measure(engine: Engine, snapshot: Snapshot, query: NamedQuery, seconds: float) -> tuple[float, list[float]]:
    """Median of the defaults, and every time over the spread, in ms (the first run of each, a warm-up, left out)."""
    defaults = {name: parameter.default for name, parameter in query.parameters.items()}
    first = [await _time(engine, snapshot, query, defaults) for _ in range(8)][1:]
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    for values in itertools.cycle(list(_spread(query))):
        times.append(await _time(engine, snapshot, query, values))
        if time.perf_counter() > deadline and len(times) >= 20:
            return statistics.median(first), times
    raise AssertionError("a query has at least one binding")


async def _time(engine: Engine, snapshot: Snapshot, query: NamedQuery, values: dict[str, Value]) -> float:
    answer = await engine.run(snapshot, Job(query.name, query.sql, values, "json"))
    return (answer.engine_seconds + answer.encoded.encode_seconds) * 1000


def _spread(query: NamedQuery, count: int = 12) -> Iterator[dict[str, Value]]:
    """The defaults, and bindings drawn (seeded) from examples, choices and bounds."""
    draw = random.Random(query.name)
    yield {name: parameter.default for name, parameter in query.parameters.items()}
    for _ in range(count):
        values: dict[str, Value] = {}
        for name, parameter in query.parameters.items():
            pool: list[Value] = [parameter.default, *parameter.examples, *parameter.choices]
            if parameter.type == "boolean":
                pool = [True, False]
            values[name] = draw.choice(pool)
        yield values


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS_PER_QUERY))
