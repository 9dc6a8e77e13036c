"""The client's side: every answer, as counts and times, in little memory."""

from __future__ import annotations

import math
import time
from array import array
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from .measured import P95, Measured, percentile
from .objectives import Objectives

RECENT_SECONDS = 10.0
_QUANTILES = (("p50", 0.50), ("p95", P95), ("p99", 0.99))
_TICK_SECONDS = 0.1
CACHED = frozenset({"hit", "stale"})
COMPUTED = frozenset({"miss", "bypass"})


def milliseconds(seconds: Iterable[float]) -> dict[str, float | int | None]:
    """Count and percentiles in ms; None where there is nothing."""
    ordered = sorted(seconds)
    found: dict[str, float | int | None] = {"requests": len(ordered)}
    for name, quantile in _QUANTILES:
        found[name] = round(percentile(ordered, quantile) * 1000, 1) if ordered else None
    return found


@dataclass
class Tally:
    """Answers of one kind: outcomes, and seconds of each request."""

    statuses: Counter[str] = field(default_factory=Counter)
    results: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    refused: int = 0
    seconds: array[float] = field(default_factory=lambda: array("d"))
    cached: array[float] = field(default_factory=lambda: array("d"))
    computed: array[float] = field(default_factory=lambda: array("d"))


class Recorder:
    """Adds up what the client sees, by phase and by query. One thread (gevent's)."""

    def __init__(self, objectives: Objectives) -> None:
        self._objectives = objectives
        self.phase = ""
        # Whether times tell what the cache saves: not at full speed, where everyone mostly waits for the processor.
        self.compares = True
        self.phases: dict[str, Tally] = {}
        self.queries: dict[str, Tally] = {}
        self.versions: Counter[str] = Counter()
        self._ticks: Counter[int] = Counter()
        self._recent: deque[tuple[float, float, bool]] = deque()

    def add(
        self, query: str, endpoint: str, status: int, seconds: float, cache: str | None, version: str | None = None
    ) -> None:
        """One answer; status 0 when none came. `cache` and `version` are the X-Cache and X-Data-Version headers."""
        code = str(status)
        bad = self._objectives.is_bad(endpoint, code)
        for tally in (self.phases.setdefault(self.phase, Tally()), self.queries.setdefault(query, Tally())):
            tally.statuses[code] += 1
            tally.bad += bad
            tally.refused += self._objectives.is_refused(code)
            tally.seconds.append(seconds)
            if cache is not None:
                tally.results[cache] += 1
                if self.compares and cache in CACHED:
                    tally.cached.append(seconds)
                elif self.compares and cache in COMPUTED:
                    tally.computed.append(seconds)
        if version is not None:
            self.versions[version] += 1
        now = time.monotonic()
        self._recent.append((now, seconds, bad))
        if self._objectives.is_good(code):
            self._ticks[int(now / _TICK_SECONDS)] += 1

    def recent(self) -> tuple[float, float, float]:
        """Of the last seconds: requests per second, p95 (s, 0 without requests), share of failures."""
        horizon = time.monotonic() - RECENT_SECONDS
        while self._recent and self._recent[0][0] < horizon:
            self._recent.popleft()
        count = len(self._recent)
        p95 = percentile(sorted(seconds for _, seconds, _ in self._recent), P95)
        failures = sum(bad for _, _, bad in self._recent) / count if count else 0.0
        return count / RECENT_SECONDS, 0.0 if math.isnan(p95) else p95, failures

    def rate(self, began: float, ended: float) -> float:
        """Good answers per second between two moments of the monotonic clock, to a tenth of a second."""
        ticks = range(int(began / _TICK_SECONDS), int(ended / _TICK_SECONDS))
        return sum(self._ticks[tick] for tick in ticks) / (ended - began)

    def good(self, phase: str) -> int:
        """Good answers in a phase."""
        statuses = self.phases.get(phase, Tally()).statuses
        return sum(count for status, count in statuses.items() if self._objectives.is_good(status))

    def together(self, phases: Iterable[str]) -> Tally:
        """Some phases as one; a phase in which nothing was asked is empty."""
        whole = Tally()
        for tally in (self.phases.get(phase, Tally()) for phase in phases):
            whole.statuses += tally.statuses
            whole.results += tally.results
            whole.bad += tally.bad
            whole.refused += tally.refused
            whole.seconds.extend(tally.seconds)
            whole.cached.extend(tally.cached)
            whole.computed.extend(tally.computed)
        return whole

    def measured(self, tally: Tally, requests_per_second: float | None, users: float) -> Measured:
        """A tally as the verdict reads it."""
        goals = self._objectives
        limited, times = tally.statuses["429"], sorted(tally.seconds)
        return Measured(
            requests=len(tally.seconds),
            bad=tally.bad,
            within_threshold=bisect_right(times, goals.threshold_seconds),
            within_p95=bisect_right(times, goals.p95_seconds),
            lookups=sum(n for result, n in tally.results.items() if result not in goals.ignored_results),
            hits=sum(n for result, n in tally.results.items() if result in goals.hit_results),
            limited=limited,
            refused=tally.refused - limited,
            p95_seconds=percentile(times, P95),
            requests_per_second=requests_per_second,
            users=users,
            times=times,
        )
