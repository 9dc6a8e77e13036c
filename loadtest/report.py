"""The run as one document: JSON for machines, HTML for people, tables for the terminal and for docs."""

from __future__ import annotations

import html
import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .measured import Counters, percentile
from .recorder import Recorder, Tally
from .run import Outcome
from .verdict import Row

Table = list[list[str]]
_QUANTILES = (("p50", 0.50), ("p95", 0.95), ("p99", 0.99))


def milliseconds(seconds: Iterable[float]) -> dict[str, float | int | None]:
    """Count and percentiles in ms; None where there is nothing."""
    ordered = sorted(seconds)
    found: dict[str, float | int | None] = {"requests": len(ordered)}
    for name, quantile in _QUANTILES:
        found[name] = round(percentile(ordered, quantile) * 1000, 1) if ordered else None
    return found


def _tally(tally: Tally) -> dict[str, Any]:
    cached, computed = milliseconds(tally.cached), milliseconds(tally.computed)
    saved = None
    if isinstance(cached["p50"], float) and isinstance(computed["p50"], float):
        saved = round(computed["p50"] - cached["p50"], 1)
    return {
        "all_ms": milliseconds(tally.seconds),
        "with_cache_ms": cached,
        "without_cache_ms": computed,
        "saved_p50_ms": saved,
        "failed": tally.bad,
        "statuses": dict(sorted(tally.statuses.items())),
        "cache": dict(sorted(tally.results.items())),
    }


def limits(outcome: Outcome) -> dict[str, Any]:
    """What the service and this client were busy with: says what limits a run."""
    found: dict[str, Any] = {
        "client_cores": round(outcome.client_cores, 2),
        "client_lag_ms": milliseconds(outcome.client_lags),
    }
    counted = outcome.counted
    if counted is None:
        return found
    waits = _sum(counted, "bi_engine_wait_seconds_count")
    runs = _sum(counted, "bi_engine_execution_seconds_count")
    return found | {
        "service_cores": round(_sum(counted, "process_cpu_seconds_total") / outcome.seconds, 2),
        "engine_busy_slots": round(_sum(counted, "bi_engine_execution_seconds_sum") / outcome.seconds, 2),
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


def _sum(counted: Counters, name: str) -> float:
    return sum(value for (found, _), value in counted.items() if found == name)


def _mean(counted: Counters, name: str, count: float) -> float | None:
    return round(_sum(counted, name) / count * 1000, 1) if count else None


def document(
    head: dict[str, Any], rows: Sequence[Row], passed: bool, recorder: Recorder, outcome: Outcome
) -> dict[str, Any]:
    """Everything about a run."""
    return {
        **head,
        "passed": passed,
        "verdict": [{**asdict(row), "outcome": row.outcome} for row in rows],
        "phases": {name: _tally(tally) for name, tally in recorder.phases.items()},
        "queries": {name: _tally(tally) for name, tally in sorted(recorder.queries.items())},
        "limits": limits(outcome),
        "memory_bytes": [[at, None if math.isnan(size) else size] for at, size in outcome.memory],
        "snapshots_seen": len(recorder.versions),
        "publish_exit_codes": outcome.published,
        "seconds": round(outcome.seconds, 1),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()},
    }


def latency_table(tallies: dict[str, Any], what: str) -> Table:
    """p50/p95/p99 in ms with and without the cache; first line is the head."""
    head = [what, "hits", "p50", "p95", "p99", "computed", "p50", "p95", "p99", "saved p50", "failed"]
    lines = [head]
    for name, tally in tallies.items():
        line = [name]
        for side in ("with_cache_ms", "without_cache_ms"):
            line += ["-" if value is None else f"{value:g}" for value in tally[side].values()]
        saved = tally["saved_p50_ms"]
        lines.append([*line, "-" if saved is None else f"{saved:g}", str(tally["failed"])])
    return lines


def phase_table(phases: dict[str, Any]) -> Table:
    """All answers of each phase: count, percentiles in ms, how the cache answered."""
    lines = [["phase", "requests", "p50", "p95", "p99", "failed", "cache"]]
    for name, tally in phases.items():
        values = ["-" if value is None else f"{value:g}" for value in tally["all_ms"].values()]
        lines.append([name, *values, str(tally["failed"]), ", ".join(f"{k} {v}" for k, v in tally["cache"].items())])
    return lines


def verdict_table(made: dict[str, Any]) -> Table:
    """The verdict's lines."""
    keys = ("slo", "objective", "client", "service", "outcome")
    return [
        ["objective", "must be", "client", "service", "verdict"],
        *([row[k] for k in keys] for row in made["verdict"]),
    ]


def aligned(table: Table) -> str:
    """A table for a terminal."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table)


def _html_table(table: Table) -> str:
    def cells(line: list[str], tag: str) -> str:
        marked = [f'<{tag} class="bad">' if cell.startswith(("MISSED", "DISAGREE")) else f"<{tag}>" for cell in line]
        return "".join(f"{mark}{html.escape(cell)}</{tag}>" for mark, cell in zip(marked, line, strict=True))

    body = "".join(f"<tr>{cells(line, 'td')}</tr>" for line in table[1:])
    return f"<table><tr>{cells(table[0], 'th')}</tr>{body}</table>"


def as_html(made: dict[str, Any]) -> str:
    """The report as one self-contained page."""
    title = f"{made['scenario']}: {'passed' if made['passed'] else 'FAILED'}"
    facts = json.dumps({k: made[k] for k in ("limits", "machine", "memory_bytes", "snapshots_seen")}, indent=1)
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}"
        "table{border-collapse:collapse;margin:.5rem 0 1.5rem}"
        "td,th{border:1px solid #bbb;padding:.2rem .6rem;text-align:left}"
        ".bad{background:#c22;color:#fff}pre{white-space:pre-wrap}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{style}</style>'
        f"<h1>{html.escape(title)}</h1><p>{html.escape(made['url'])}, {html.escape(made['started'])}, "
        f"{made['seconds']} s. Service side: {html.escape(made['service_side'])}.</p>"
        f"<h2>Verdict</h2>{_html_table(verdict_table(made))}"
        f"<h2>Phases (ms)</h2>{_html_table(phase_table(made['phases']))}"
        "<h2>What the cache saves, per query (ms)</h2>"
        "<p>Hits (fresh or stale) beside answers for which the engine ran, while people had time to think."
        f"</p>{_html_table(latency_table(made['queries'], 'query'))}"
        f"<h2>What limits it</h2><pre>{html.escape(facts)}</pre></html>\n"
    )


def write(made: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write both files into `folder`; their paths. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{made['scenario']}-{made['started'].replace(':', '').replace('-', '')}"
    as_json, page = folder / f"{stem}.json", folder / f"{stem}.html"
    as_json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    page.write_text(as_html(made), encoding="utf-8")
    return as_json, page
