"""The rows of the table, and the rounds: every row once in each round, in an order that turns, so that drift hits all."""

from __future__ import annotations

import datetime
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bi_query.catalogue import Catalogue
from bi_query.parameters import bind

from .check import assert_same
from .measure import DuckDBAlone, Figures, Job, write_requests, wrk
from .systems.base import System
from .systems.service import ThisService
from .workload import Question, distinct, mixed

HIT_KIND, MISS_KIND = "top_products", "store_ranking"
HIT_KEYS = 120


@dataclass(frozen=True)
class Size:
    """How long a run is. Peers without a cache get `peer_seconds`: what 30 connections still wait for when a round ends is
    not counted, and of few answers that would be a large part."""

    rounds: int
    seconds: float
    peer_seconds: float
    mixed_requests: int
    misses: int
    checked: int


FULL = Size(rounds=5, seconds=4, peer_seconds=9, mixed_requests=100_000, misses=12_000, checked=60)
QUICK = Size(rounds=2, seconds=1, peer_seconds=3, mixed_requests=20_000, misses=3_000, checked=15)


@dataclass(frozen=True)
class Row:
    """One line of the results: `measure` runs a round of it."""

    name: str
    title: str
    measure: Callable[[], Figures]


def hit_questions() -> list[Question]:
    """The same answer under `HIT_KEYS` cache keys: periods that end after the data's last day.

    One key alone would let the service share one lookup of Redis among all who wait for it.
    """
    first, last = datetime.date(2017, 1, 1), datetime.date(2017, 12, 31)
    ends = (last + datetime.timedelta(days=days) for days in range(HIT_KEYS))
    return [Question(HIT_KIND, first, end, None, 20) for end in ends]


def warm(service: ThisService, body: bytes) -> None:
    """Ask every hit question once, so that the cache holds it. Raises `AssertionError` when an answer has other bytes."""
    for question in hit_questions():
        assert service.body(question) == body, f"{question} is not the same answer"


def hit_rows(size: Size, folder: Path, systems: Sequence[System]) -> list[Row]:
    """Cached hits in each tier, and their ceilings."""
    titles = {"hit": "this service, hits from memory", "hit_redis": "this service, hits from Redis (memory tier off)"}
    return [_walk(s.name, titles.get(s.name, s.title), s, hit_questions(), size, folder) for s in systems]


def miss_rows(
    size: Size, folder: Path, service: ThisService, alone: DuckDBAlone, catalogue: Catalogue, cores: int
) -> list[Row]:
    """Every request a question that was never asked before; beside DuckDB alone on the same questions."""
    rows = []
    for name, kinds, text in (
        ("miss", (MISS_KIND,), f"`{MISS_KIND}`"),
        ("miss_mixed", None, "all five kinds"),
    ):
        source = distinct() if kinds is None else distinct(kinds)
        questions = list(itertools.islice(source, size.misses))
        jobs = [_job(catalogue, question) for question in questions]
        rows.append(
            _walk(name, f"this service, every request a miss, {text}", service, questions, size, folder, forget=True)
        )
        for threads in sorted({1, cores}):
            rows.append(
                Row(
                    f"{name.replace('miss', 'duckdb')}_threads_{threads}",
                    f"DuckDB alone, {text}, {cores} queries at a time, threads = {threads}",
                    lambda jobs=jobs, threads=threads: alone.run(jobs, size.seconds, threads),  # type: ignore[misc]
                )
            )
    return rows


def mixed_rows(size: Size, folder: Path, systems: Sequence[System]) -> list[Row]:
    """The mixed stream, caches emptied before each round."""
    stream = mixed(size.mixed_requests)
    few = stream[: size.mixed_requests // 5]  # as far as peers get, whose requests are SQL texts of a kilobyte and more
    return [
        _walk(f"mixed_{s.name}", s.title, s, stream if isinstance(s, ThisService) else few, size, folder, forget=True)
        for s in systems
    ]


def _walk(
    name: str,
    title: str,
    system: System,
    questions: Sequence[Question],
    size: Size,
    folder: Path,
    *,
    forget: bool = False,
) -> Row:
    requests = write_requests(folder / f"{name}.requests", system.requests(questions))

    def measure() -> Figures:
        if forget:
            system.forget()
        figures = wrk(requests, system.url, size.seconds if system.caches else size.peer_seconds, [system.counted])
        if forget and figures["answers"] > len(questions):
            raise RuntimeError(
                f"{name}: {len(questions)} requests are too few for this machine; raise them in rounds.py"
            )
        untrue = not_what_it_says(name, figures)
        if untrue:
            raise RuntimeError(f"{name}: {untrue}")
        return figures

    return Row(name, title, measure)


def not_what_it_says(name: str, figures: Figures) -> str | None:
    """By the service's own counters: rows of hits hold hits of their tier alone, rows of misses none. None: as it says."""
    if name in ("hit", "hit_redis"):
        tier = "hit_redis" if name == "hit_redis" else "hit_memory"
        if figures["miss_none"] or figures[tier] < figures["answers"]:
            return f"{figures['answers']:.0f} answers, {figures[tier]:.0f} of them hits of its tier"
    if name.startswith("miss") and (hits := figures["hit_memory"] + figures["hit_redis"]):
        return f"{hits:.0f} of {figures['answers']:.0f} answers were hits"
    return None


def _job(catalogue: Catalogue, question: Question) -> Job:
    query = catalogue.queries[question.kind]
    return query.sql, bind(query.parameters, question.asked.items())


def check(reference: System, others: Sequence[System], size: Size) -> int:
    """Compare answers on the first questions that will be asked; how many."""
    return assert_same(reference, others, itertools.islice(distinct(), size.checked)) if others else 0


def run(rows: Sequence[Row], size: Size) -> dict[str, list[Figures]]:
    """All rounds of all rows, by row name. Shows progress."""
    rounds: dict[str, list[Figures]] = {row.name: [] for row in rows}
    started, total = time.monotonic(), size.rounds * len(rows)
    for number in range(size.rounds):
        turned = [*rows[number % len(rows) :], *rows[: number % len(rows)]]
        for row in turned:
            rounds[row.name].append(row.measure())
            done = sum(map(len, rounds.values()))
            left = (time.monotonic() - started) / done * (total - done)
            rate = rounds[row.name][-1]["requests_per_second"]
            say(f"round {number + 1} of {size.rounds}: {row.name} {rate:,.0f}/s ({left:.0f} s left)")
    return rounds


def medians(rounds: dict[str, list[Figures]]) -> dict[str, Figures]:
    """The median of each figure over a row's rounds."""
    return {
        name: {key: statistics.median(one[key] for one in many) for key in many[0]} for name, many in rounds.items()
    }


def say(text: str) -> None:
    """A line of progress."""
    print(f"bench: {text}", file=sys.stderr, flush=True)
