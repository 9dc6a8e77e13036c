"""Objectives against measurements: one row each, client and service side by side, and the exit code."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

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

    def row(
        slo: str, objective: str, values: list[float], shown: list[str], met: list[bool], *, compared: bool = True
    ) -> Row:
        difference = apart(*values) if compared and len(values) == 2 else None
        agreed = None if difference is None else difference <= LARGEST_DIFFERENCE  # NaN compares false
        return Row(slo, objective, shown[0], shown[1] if len(shown) > 1 else "-", all(met), agreed, slo in judged)

    def ratio(slo: str, objective: float, values: list[float], text: str, extra: Sequence[str] = ()) -> Row:
        shown = [_percent(value) + (f" ({extra[i]})" if extra else "") for i, value in enumerate(values)]
        return row(slo, text, values, shown, [value >= objective for value in values])

    speed = [math.nan if side.requests_per_second is None else side.requests_per_second for side in sides]
    return [
        ratio(
            "availability",
            objectives.availability,
            [side.availability for side in sides],
            f">= {_percent(objectives.availability)}",
            [f"{side.bad} failed" for side in sides],
        ),
        ratio(
            "latency",
            objectives.fast_enough,
            [side.fast_enough for side in sides],
            f">= {_percent(objectives.fast_enough)} within {objectives.threshold_seconds:g} s",
        ),
        # At most 5 % above the objective is the same statement as a p95 below it, and countable on both sides.
        ratio(
            "p95",
            0.95,
            [side.fast_enough_for_p95 for side in sides],
            f"p95 below {objectives.p95_seconds:g} s",
            [f"p95 {_seconds(side.p95_seconds)}" for side in sides],
        ),
        ratio(
            "hit_rate",
            objectives.hit_rate,
            [side.hit_rate for side in sides],
            f">= {_percent(objectives.hit_rate)}",
            [f"{side.hits} of {side.lookups}" for side in sides],
        ),
        row(
            "throughput",
            f"> {objectives.requests_per_second:g} req/s",
            speed,
            ["not measured" if math.isnan(value) else f"{value:.1f} req/s" for value in speed],
            [value > objectives.requests_per_second for value in speed],
        ),
        # The service's gauge looks five minutes back and counts keys: shown, not compared.
        row(
            "users",
            f">= {wanted_users} at once",
            [side.users for side in sides],
            [f"{client.users:.0f} at once", "" if service is None else f"{service.users:.0f} clients in 5 min"],
            [client.users >= wanted_users],
            compared=False,
        ),
        *_validity(sides),
    ]


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
