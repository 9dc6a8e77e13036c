"""Objectives against measurements: one row each, client and service side by side, and the exit code."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .agreement import LARGEST_GAP, Gap, alike, failures_alike, widest_gap
from .measured import Measured
from .objectives import Objectives

ALL = frozenset({"availability", "latency", "p95", "hit_rate", "throughput", "users"})


@dataclass(frozen=True)
class Window:
    """What lies between two readings of the service: a stage, or several where a reading in between failed.

    `stages` are the client's, each judged by itself; `client` is all of them, to stand beside `service` (None: not read).
    `thinking`: people pause in all of it, so that a request does not wait for the client's own processor.
    """

    name: str
    stages: Mapping[str, Measured]
    client: Measured
    service: Measured | None
    thinking: bool


@dataclass(frozen=True)
class Part:
    """A line of the verdict in one stage."""

    stage: str
    client: str
    service: str
    met: bool
    agreed: bool | None


@dataclass(frozen=True)
class Row:
    """One line of the verdict. `judged`: it decides the exit code. `agreed`: None where the sides cannot be compared.

    `client` and `service` show the worst of `parts`, which decides.
    """

    slo: str
    objective: str
    client: str
    service: str
    met: bool
    agreed: bool | None
    judged: bool
    parts: tuple[Part, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether this line lets the run pass: an objective not judged must still be measured alike."""
        return (self.met or not self.judged) and self.agreed is not False

    @property
    def outcome(self) -> str:
        """In words."""
        return outcome(self.met, self.agreed, judged=self.judged)


def outcome(met: bool, agreed: bool | None, *, judged: bool) -> str:
    """A line's or a part's outcome in words."""
    if agreed is False:
        return "DISAGREE" if met or not judged else "MISSED, DISAGREE"
    if not judged:
        return "not judged"
    return "met" if met else "MISSED"


def not_judged(slo: str, objective: str, why: str) -> Row:
    """A line for what cannot be told in this run."""
    return Row(slo, objective, "-", why, met=False, agreed=None, judged=False)


def judge(objectives: Objectives, judged: Collection[str], windows: Sequence[Window], wanted_users: int) -> list[Row]:
    """The verdict on one run. Every stage must meet an objective, on both sides where the service's could be read."""
    rows = [
        *_ratios(objectives, windows),
        _throughput(objectives.requests_per_second, windows),
        _users(wanted_users, windows),
    ]
    return [*(replace(row, judged=row.slo in judged) for row in rows), *_validity(windows)]


def _ratios(objectives: Objectives, windows: Sequence[Window]) -> list[Row]:
    def row(
        slo: str, least: float, of: Callable[[Measured], float], told: Callable[[Measured], str], text: str = ""
    ) -> Row:
        def agree(one: Measured, other: Measured) -> bool:
            return alike(of(one), of(other)) and (slo != "availability" or failures_alike(one.bad, other.bad))

        def show(one: Measured) -> str:
            return " ".join([_percent(of(one)), told(one)]).rstrip()

        return _row(slo, text or f">= {_percent(least)}", windows, of, show, lambda value: value >= least, agree)

    fast = f">= {_percent(objectives.fast_enough)} within {objectives.threshold_seconds:g} s"
    p95 = f"p95 below {objectives.p95_seconds:g} s"
    return [
        row("availability", objectives.availability, lambda one: one.availability, lambda one: f"({one.bad} failed)"),
        row("latency", objectives.fast_enough, lambda one: one.fast_enough, lambda one: "", fast),
        # At most 5 % above the objective is the same statement as a p95 below it, and countable on both sides.
        row("p95", 0.95, lambda one: one.fast_enough_for_p95, lambda one: f"(p95 {_seconds(one.p95_seconds)})", p95),
        row("hit_rate", objectives.hit_rate, lambda one: one.hit_rate, lambda one: f"({one.hits} of {one.lookups})"),
    ]


def _row(
    slo: str,
    objective: str,
    windows: Sequence[Window],
    of: Callable[[Measured], float],
    show: Callable[[Measured], str],
    good: Callable[[float], bool],
    agree: Callable[[Measured, Measured], bool],
) -> Row:
    """A row that is not judged yet, from a number that each stage and each side has: the lowest decides."""
    parts = []
    for window in windows:
        agreed = None if window.service is None else agree(window.client, window.service)
        beside = [] if window.service is None else [window.service]
        for stage, client in window.stages.items():
            met = all(good(of(side)) for side in (client, *beside))
            parts.append(Part(stage, show(client), show(window.service) if window.service else "-", met, agreed))
    clients = {stage: client for window in windows for stage, client in window.stages.items()}
    services = {window.name: window.service for window in windows if window.service is not None}
    met, agreed = all(part.met for part in parts), _together(part.agreed for part in parts)
    shown = _worst(clients, of, show), _worst(services, of, show)
    return Row(slo, objective, *shown, met, agreed, judged=False, parts=tuple(parts))


def _worst(sides: Mapping[str, Measured], of: Callable[[Measured], float], show: Callable[[Measured], str]) -> str:
    """The lowest of one side, and where; what was not measured is lower than anything. Among equals the slowest."""

    def low(one: tuple[str, Measured]) -> tuple[float, float]:
        value, p95 = of(one[1]), one[1].p95_seconds
        return -math.inf if math.isnan(value) else value, 0.0 if math.isnan(p95) else -p95

    if not sides:
        return "-"
    name, worst = min(sides.items(), key=low)
    return show(worst) + (f" in {name}" if len({show(side) for side in sides.values()}) > 1 else "")


def _together(agreements: Iterable[bool | None]) -> bool | None:
    known = [agreed for agreed in agreements if agreed is not None]
    return all(known) if known else None


def _throughput(least: float, windows: Sequence[Window]) -> Row:
    """Where nobody thinks; elsewhere people decide how much is asked."""

    def speed(one: Measured) -> float:
        return math.nan if one.requests_per_second is None else one.requests_per_second

    def show(one: Measured) -> str:
        return "not measured" if math.isnan(speed(one)) else f"{speed(one):.1f} good/s"

    fast = [replace(window, stages={window.name: window.client}) for window in windows if not window.thinking]
    # A reading in between failed: the service's rate at full speed is not known, and the client's decides.
    joined = {window.name for window in windows if len(window.stages) > 1}
    fast = [
        replace(window, service=None)
        if window.name in joined and window.service and window.service.requests_per_second is None
        else window
        for window in fast
    ]
    row = _row(
        "throughput", f"> {least:g} req/s", fast, speed, show,
        lambda value: value > least, lambda one, other: alike(speed(one), speed(other)),
    )  # fmt: skip
    return row if fast else replace(row, client="not measured", met=False)


def _users(wanted: int, windows: Sequence[Window]) -> Row:
    """The service's gauge looks five minutes back and counts keys: shown where it can be told, not compared."""
    most = max(window.client.users for window in windows)
    seen = [window.service.users for window in windows if window.service and not math.isnan(window.service.users)]
    service = f"{max(seen):.0f} clients in 5 min" if seen else "-"
    return Row("users", f">= {wanted} at once", f"{most:.0f} at once", service, most >= wanted, None, judged=False)


def _validity(windows: Sequence[Window]) -> list[Row]:
    """What makes a run worth judging: both sides counted and timed the same requests, and no question was at fault."""
    counted = [
        Part(
            window.name,
            f"{window.client.requests:,}",
            f"{window.service.requests:,}" if window.service else "-",
            min(window.client.requests, window.service.requests if window.service else 1) > 0,
            alike(window.client.requests, window.service.requests) if window.service else None,
        )
        for window in windows
    ]
    client, service = _both(windows, lambda one: one.requests)
    shown = f"{client:,}", "-" if service is None else f"{service:,}"
    met, agreed = all(part.met for part in counted), _together(part.agreed for part in counted)
    asked = Row("requests", "counted alike", *shown, met, agreed, True, tuple(counted))
    limited, refused = _both(windows, lambda one: one.limited), _both(windows, lambda one: one.refused)
    faults = ["-" if a is None else f"{a} x 429, {b} x 4xx" for a, b in zip(limited, refused, strict=True)]
    none = not any([*limited, *refused])
    return [asked, _times(windows), Row("valid_questions", "no 429, no 4xx", faults[0], faults[1], none, None, True)]


def _both(windows: Sequence[Window], of: Callable[[Measured], int]) -> tuple[int, int | None]:
    """A count over the whole run, of both sides; the service's is None where it was not read at all."""
    services = [of(window.service) for window in windows if window.service is not None]
    return sum(of(window.client) for window in windows), sum(services) if services else None


def _times(windows: Sequence[Window]) -> Row:
    """Whether both sides timed alike. Not where nobody thinks: there a request waits for a processor it shares."""
    objective = f"within {100 * LARGEST_GAP:g} points of each other"
    parts, widest = [], Gap(-1.0)
    for window in windows:
        if window.service is None or not window.thinking:
            continue
        gap = widest_gap(window.client.times, window.service.edges)
        parts.append(Part(window.name, *_within(gap), True, gap.size <= LARGEST_GAP))
        if not gap.size <= widest.size:
            widest = gap
    if not parts:
        return not_judged("times", objective, "-")
    agreed = all(part.agreed for part in parts)
    return Row("times", objective, *_within(widest), True, agreed, judged=True, parts=tuple(parts))


def _within(gap: Gap) -> tuple[str, str]:
    """Both sides of the gap in words."""
    if math.isnan(gap.size):
        return "nothing measured", "nothing measured"
    sides = ((gap.client, gap.client_edge), (gap.service, gap.edge))
    client, service = (f"{_percent(share)} within {1000 * edge:g} ms" for share, edge in sides)
    return client, service


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
