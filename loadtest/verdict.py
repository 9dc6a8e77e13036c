"""Objectives against measurements: one row each, client and service side by side, and the exit code."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from .measured import Measured, apart
from .objectives import Objectives

# Two ways to measure one thing must agree; not an objective of the service but a check of the measurement.
LARGEST_DIFFERENCE = 0.10
ALL = frozenset({"availability", "latency", "p95", "hit_rate", "throughput", "users"})


@dataclass(frozen=True)
class Row:
    """One line of the verdict. `judged`: it decides the exit code. `agreed`: None where the sides cannot be compared."""

    slo: str
    objective: str
    client: str
    service: str
    met: bool
    agreed: bool | None
    judged: bool

    @property
    def passed(self) -> bool:
        """Whether this line lets the run pass: an objective not judged must still be measured alike."""
        return (self.met or not self.judged) and self.agreed is not False

    @property
    def outcome(self) -> str:
        """In words."""
        if self.agreed is False:
            return "DISAGREE" if self.met or not self.judged else "MISSED, DISAGREE"
        if not self.judged:
            return "not judged"
        return "met" if self.met else "MISSED"


def judge(
    objectives: Objectives, judged: Collection[str], client: Measured, service: Measured | None, wanted_users: int
) -> list[Row]:
    """The verdict on one run. Both sides must meet an objective; without a service side the client's alone decides."""
    sides = [client] if service is None else [client, service]
    rows = [
        *_ratios(objectives, sides),
        _throughput(objectives.requests_per_second, sides),
        _users(wanted_users, sides),
    ]
    return [*(replace(row, judged=row.slo in judged) for row in rows), *_validity(sides)]


def _ratios(objectives: Objectives, sides: Sequence[Measured]) -> list[Row]:
    def row(
        slo: str, least: float, of: Callable[[Measured], float], told: Callable[[Measured], str], text: str = ""
    ) -> Row:
        values = [of(side) for side in sides]
        shown = [" ".join([_percent(of(side)), told(side)]).rstrip() for side in sides]
        return _row(slo, text or f">= {_percent(least)}", values, shown, [value >= least for value in values])

    fast = f">= {_percent(objectives.fast_enough)} within {objectives.threshold_seconds:g} s"
    p95 = f"p95 below {objectives.p95_seconds:g} s"
    return [
        row("availability", objectives.availability, lambda one: one.availability, lambda one: f"({one.bad} failed)"),
        row("latency", objectives.fast_enough, lambda one: one.fast_enough, lambda one: "", fast),
        # At most 5 % above the objective is the same statement as a p95 below it, and countable on both sides.
        row("p95", 0.95, lambda one: one.fast_enough_for_p95, lambda one: f"(p95 {_seconds(one.p95_seconds)})", p95),
        row("hit_rate", objectives.hit_rate, lambda one: one.hit_rate, lambda one: f"({one.hits} of {one.lookups})"),
    ]


def _throughput(least: float, sides: Sequence[Measured]) -> Row:
    speed = [math.nan if side.requests_per_second is None else side.requests_per_second for side in sides]
    shown = ["not measured" if math.isnan(value) else f"{value:.1f} req/s" for value in speed]
    return _row("throughput", f"> {least:g} req/s", speed, shown, [value > least for value in speed])


def _users(wanted: int, sides: Sequence[Measured]) -> Row:
    """The service's gauge looks five minutes back and counts keys: shown, not compared."""
    shown = [f"{side.users:.0f} {text}" for side, text in zip(sides, ("at once", "clients in 5 min"), strict=False)]
    return _row("users", f">= {wanted} at once", [], shown, [sides[0].users >= wanted])


def _row(slo: str, objective: str, compared: list[float], shown: list[str], met: list[bool]) -> Row:
    """A row that is not judged yet; its sides agree when what is compared, if two are, is nearly the same."""
    agreed = apart(*compared) <= LARGEST_DIFFERENCE if len(compared) == 2 else None  # NaN compares false
    return Row(slo, objective, *_two(shown), all(met), agreed, judged=False)


def _validity(sides: list[Measured]) -> list[Row]:
    """What makes a run worth judging: both sides counted the same requests, and no question was at fault."""
    counts = [side.requests for side in sides]
    agreed = None if len(counts) < 2 else apart(*counts) <= LARGEST_DIFFERENCE
    asked = Row("requests", "counted alike", *_two([f"{n:,}" for n in counts]), min(counts) > 0, agreed, True)
    limited, refused = [side.limited for side in sides], [side.refused for side in sides]
    shown = [f"{a} x 429, {b} x 4xx" for a, b in zip(limited, refused, strict=True)]
    clean = Row("valid_questions", "no 429, no 4xx", *_two(shown), sum(limited) + sum(refused) == 0, None, True)
    return [asked, clean]


def _two(shown: list[str]) -> tuple[str, str]:
    return shown[0], shown[1] if len(shown) > 1 else "-"


def exit_code(rows: Collection[Row]) -> int:
    """0 when every line passes, else 1."""
    return 0 if all(row.passed for row in rows) else 1


def as_text(rows: Sequence[Row]) -> str:
    """The rows as an aligned table."""
    table = [("objective", "must be", "client", "service", "verdict")]
    table += [(row.slo, row.objective, row.client, row.service, row.outcome) for row in rows]
    widths = [max(len(line[column]) for line in table) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    )


def _percent(value: float) -> str:
    return "nothing measured" if math.isnan(value) else f"{100 * value:.2f} %"


def _seconds(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f} s"
