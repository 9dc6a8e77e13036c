"""Whether client and service measured the same: not an objective of the service but a check of the measurement."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LARGEST_DIFFERENCE = 0.10
# So few failures are no disagreement: a connection that broke is seen by the client alone.
FAILURES_APART = 10
# Of requests, as a share: how far the two distributions of times may lie apart at any edge of the histogram.
LARGEST_GAP = 0.10
# What the network and a client that wakes up late on a busy machine may add, without anything being wrong.
CLIENT_ADDS_SECONDS = 0.050


def apart(one: float, other: float) -> float:
    """How far two measurements of one thing differ, as a share of the larger; NaN when either is missing."""
    if math.isnan(one) or math.isnan(other):
        return 0.0 if math.isnan(one) and math.isnan(other) else math.nan
    larger = max(abs(one), abs(other))
    return abs(one - other) / larger if larger else 0.0


def alike(one: float, other: float) -> bool:
    """Whether two measurements are nearly the same; not when only one of them is missing."""
    return apart(one, other) <= LARGEST_DIFFERENCE  # NaN compares false


def failures_alike(one: int, other: int) -> bool:
    """Whether two counts of failures are: shares near 1 hide them (98 % and 100 % are 2 % apart)."""
    return abs(one - other) <= max(FAILURES_APART, LARGEST_DIFFERENCE * max(one, other))


@dataclass(frozen=True)
class Gap:
    """Where two distributions lie furthest apart: `service` is its share of requests within `edge` seconds, `client` is
    the client's within `client_edge`. `size` is NaN where a side measured nothing."""

    size: float
    edge: float = math.nan
    service: float = math.nan
    client_edge: float = math.nan
    client: float = math.nan


def widest_gap(times: Sequence[float], edges: Mapping[float, float]) -> Gap:
    """The client's times (s, sorted) against the service's cumulative histogram (upper edge -> count).

    The client's share may lie anywhere between that within the edge and that within CLIENT_ADDS_SECONDS more.
    """
    widest, total = Gap(math.nan), edges.get(math.inf, 0.0)
    if not times or not total:
        return widest
    for edge, count in sorted(edges.items()):
        if math.isinf(edge):
            continue
        service = count / total
        exact, eased = (bisect_right(times, limit) / len(times) for limit in (edge, edge + CLIENT_ADDS_SECONDS))
        size = max(service - eased, exact - service, 0.0)
        if not size <= widest.size:
            client = (edge, exact) if exact > service else (edge + CLIENT_ADDS_SECONDS, eased)
            widest = Gap(size, edge, service, *client)
    return widest
