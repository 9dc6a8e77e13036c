"""What the service and this client were busy with in each stage: says what limits a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .measured import Counters
from .outcome import Outcome, WindowSeen
from .recorder import milliseconds

_AD_HOC = "ad_hoc"  # the query and the lane of what people write themselves; all else runs in the lane "named"


def limits(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """By stage (stages together where the service could not be read between them)."""
    return {window.name: _limits(window, outcome.slots) for window in outcome.windows}


def _limits(window: WindowSeen, slots: Mapping[str, float]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "client_cores": round(window.client_cores, 2),
        "client_lag_ms": {name: lag for name, lag in milliseconds(window.client_lags).items() if name != "requests"},
    }
    counted = window.counted
    if counted is None:
        return found
    waits = _sum(counted, "bi_engine_wait_seconds_count")
    runs = _sum(counted, "bi_engine_execution_seconds_count")
    return found | {
        "service_cores": round(_sum(counted, "process_cpu_seconds_total") / window.seconds, 2),
        "engine_busy_share_of_slots": _busy(counted, window.seconds, slots),
        "engine_runs": round(runs),
        "engine_mean_ms": _mean(counted, "bi_engine_execution_seconds_sum", runs),
        "queue_mean_ms": _mean(counted, "bi_engine_wait_seconds_sum", waits),
        "refused": {
            dict(labels)["reason"]: round(value)
            for (name, labels), value in counted.items()
            if name == "bi_engine_rejections_total"
        },
        "engine_seconds_saved_by_cache": round(_sum(counted, "bi_cache_saved_seconds_total"), 1),
        "snapshot_swaps": round(_sum(counted, "bi_snapshot_swaps_total")),
    }


def _busy(counted: Counters, seconds: float, slots: Mapping[str, float]) -> dict[str, float]:
    """Share (0..1) of each lane's bi_engine_max_running_queries that was executing, on average."""
    spent = dict.fromkeys(slots, 0.0)
    for (name, labels), value in counted.items():
        lane = _AD_HOC if dict(labels).get("query") == _AD_HOC else "named"
        if name == "bi_engine_execution_seconds_sum" and lane in spent:
            spent[lane] += value
    return {lane: round(spent[lane] / seconds / most, 3) for lane, most in sorted(slots.items()) if most}


def _sum(counted: Counters, name: str) -> float:
    return sum(value for (found, _), value in counted.items() if found == name)


def _mean(counted: Counters, name: str, count: float) -> float | None:
    return round(_sum(counted, name) / count * 1000, 1) if count else None


def limits_table(found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A column for each stage; first line is the head."""
    flat = {stage: _flat(values) for stage, values in found.items()}
    names = dict.fromkeys(name for values in flat.values() for name in values)
    return [["", *flat], *([name, *(values.get(name, "-") for values in flat.values())] for name in names)]


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        inner = {f"{name} {key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
        flat |= {key: "-" if one is None else f"{one:g}" for key, one in inner.items()}
    return flat
