"""What one side, client or service, saw in a window: the numbers a verdict needs, and the arithmetic on them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .objectives import BadObjectives, Objectives

Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]
Counters = Mapping[Key, float]
P95 = 0.95


@dataclass(frozen=True)
class Measured:
    """Counts of requests to the API in one window, as one side saw them.

    `p95_seconds` is exact at the client and interpolated within a bucket at the service: shown, never compared. What is
    compared is the share of requests within a bucket's edge, which both sides can count: the client from its `times`
    (s, sorted), the service from `edges` (upper edge -> count). `requests_per_second` is of good answers, and None where
    people think; `users` is NaN where it cannot be told.
    """

    requests: int
    bad: int
    within_threshold: int
    within_p95: int
    lookups: int
    hits: int
    limited: int
    refused: int
    p95_seconds: float
    requests_per_second: float | None
    users: float
    times: Sequence[float] = field(default=(), repr=False)
    edges: Mapping[float, float] = field(default_factory=dict, repr=False)

    @property
    def availability(self) -> float:
        """Share of requests that did not fail; NaN without requests."""
        return _share(self.requests - self.bad, self.requests)

    @property
    def fast_enough(self) -> float:
        """Share of requests within the latency threshold."""
        return _share(self.within_threshold, self.requests)

    @property
    def fast_enough_for_p95(self) -> float:
        """Share of requests within the p95 objective."""
        return _share(self.within_p95, self.requests)

    @property
    def hit_rate(self) -> float:
        """Share of lookups for which the engine did not run; NaN when nothing was looked up."""
        return _share(self.hits, self.lookups)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def percentile(ordered: Sequence[float], quantile: float) -> float:
    """The smallest value that at least `quantile` (0..1) of the sorted values do not exceed; NaN without values."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(quantile * len(ordered)) - 1)]


def check_edges(edges: Collection[float], objectives: Objectives) -> None:
    """Raises `BadObjectives` when an objective's time is no edge of the histogram's buckets: it could not be judged."""
    for what, seconds in (("threshold_seconds", objectives.threshold_seconds), ("p95_seconds", objectives.p95_seconds)):
        if edges and seconds not in edges:
            raise BadObjectives(
                f"slo.yaml latency.{what}: {seconds:g} s is no bucket edge of http_request_duration_seconds"
            )


def good_in(counted: Counters, objectives: Objectives) -> float:
    """Good answers of the API in increases of counters."""
    return sum(
        value
        for (name, pairs), value in counted.items()
        if name == "http_requests_total"
        and objectives.endpoints.fullmatch(dict(pairs).get("endpoint", ""))
        and objectives.is_good(dict(pairs)["status"])
    )


def from_counters(counted: Counters, objectives: Objectives, rate: float | None, users: float) -> Measured:
    """The service's side, from the increases of its counters over the window.

    Raises `BadObjectives`, as `check_edges` does.
    """
    requests = bad = limited = refused = lookups = hits = 0.0
    edges: dict[float, float] = {}
    for (name, pairs), value in counted.items():
        labels = dict(pairs)
        if name == "bi_cache_requests_total" and labels["result"] not in objectives.ignored_results:
            lookups += value
            hits += value if labels["result"] in objectives.hit_results else 0
        if not objectives.endpoints.fullmatch(labels.get("endpoint", "")):
            continue
        if name == "http_requests_total":
            status = labels["status"]
            requests += value
            bad += value if objectives.is_bad(labels["endpoint"], status) else 0
            limited += value if status == "429" else 0
            refused += value if objectives.is_refused(status) and status != "429" else 0
        elif name == "http_request_duration_seconds_bucket":
            edge = float(labels["le"])
            edges[edge] = edges.get(edge, 0.0) + value
    check_edges(edges, objectives)
    return Measured(
        requests=round(requests),
        bad=round(bad),
        within_threshold=round(edges.get(objectives.threshold_seconds, 0.0)),
        within_p95=round(edges.get(objectives.p95_seconds, 0.0)),
        lookups=round(lookups),
        hits=round(hits),
        limited=round(limited),
        refused=round(refused),
        p95_seconds=bucket_quantile(edges, P95),
        requests_per_second=rate,
        users=users,
        edges=edges,
    )


def bucket_quantile(edges: Mapping[float, float], quantile: float) -> float:
    """A quantile interpolated within cumulative buckets (upper edge -> count), as Prometheus does it."""
    total = edges.get(math.inf, 0.0)
    if not total:
        return math.nan
    lower, below = 0.0, 0.0
    for edge, count in sorted(edges.items()):
        if count >= quantile * total:
            if math.isinf(edge) or count == below:
                return lower
            return lower + (edge - lower) * (quantile * total - below) / (count - below)
        lower, below = edge, count
    return lower


def increase(samples: Iterable[tuple[float, float]], start: float, end: float) -> float:
    """How much a counter grew after `start` and up to `end` (seconds), from (time, value) in order.

    Counts from zero where the series began within the window, and over resets. Exact, unlike PromQL's increase(), which
    extrapolates: the window is chosen so that nothing happens at its edges.
    """
    grown, last = 0.0, 0.0
    for when, value in samples:
        if start < when <= end:
            grown += value - last if value >= last else value
        if when <= end:
            last = value
    return grown
