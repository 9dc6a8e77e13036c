"""The run as one document: JSON for machines, HTML for people, tables for the terminal and for docs."""

from __future__ import annotations

import html
import json
import math
import os
import platform
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .limits import limits, limits_table
from .memory import memory_table
from .outcome import Outcome
from .recorder import Recorder, Tally, milliseconds
from .verdict import Row, Window, outcome

Table = list[list[str]]


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


def document(
    head: dict[str, Any],
    rows: Sequence[Row],
    passed: bool,
    recorder: Recorder,
    left: Outcome,
    windows: Sequence[Window],
) -> dict[str, Any]:
    """Everything about a run."""
    return {
        **head,
        "passed": passed,
        "unmeasured": left.unmeasured,
        "gaps": left.gaps,
        "verdict": [{**asdict(row), "outcome": row.outcome} for row in rows],
        "times": {window.name: _times(window) for window in windows},
        "phases": {name: _tally(tally) for name, tally in recorder.phases.items()},
        "queries": {name: _tally(tally) for name, tally in sorted(recorder.queries.items())},
        "limits": limits(left),
        "memory_bytes": [[at, None if math.isnan(size) else size] for at, size in left.memory],
        "snapshots_seen": len(recorder.versions),
        "publish_exit_codes": left.published,
        "seconds": round(left.seconds, 1),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()},
    }


def _times(window: Window) -> list[dict[str, float | None]]:
    """Shares of requests within each edge of the service's histogram, seconds; the client's are exact."""
    if window.service is None:
        return []
    times, edges = window.client.times, window.service.edges
    total = edges.get(math.inf, 0.0)
    return [
        {
            "seconds": edge,
            "client": round(bisect_right(times, edge) / len(times), 4) if times else None,
            "service": round(count / total, 4) if total else None,
        }
        for edge, count in sorted(edges.items())
        if math.isfinite(edge)
    ]


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


def stage_table(made: dict[str, Any]) -> Table:
    """The verdict's lines in each stage, where there are several."""
    lines = [["objective", "stage", "client", "service", "verdict"]]
    for row in made["verdict"]:
        for part in row["parts"] if len(row["parts"]) > 1 else ():
            said = outcome(part["met"], part["agreed"], judged=row["judged"])
            lines.append([row["slo"], part["stage"], part["client"], part["service"], said])
    return lines


def times_table(times: dict[str, Any]) -> Table:
    """Where the service was read: how many per cent came within how many ms, at the client and at the service."""
    lines = [["stage", "side"]]
    for stage, edges in times.items():
        if not edges:
            continue
        lines[0] = ["stage", "side", *(f"{1000 * edge['seconds']:g} ms" for edge in edges)]
        for side in ("client", "service"):
            shares = ("-" if edge[side] is None else f"{100 * edge[side]:.1f}" for edge in edges)
            lines.append([stage, side, *shares])
    return lines


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


def _section(title: str, table: Table) -> str:
    """A table under a heading; nothing when it has no lines."""
    return f"<h2>{html.escape(title)}</h2>{_html_table(table)}" if len(table) > 1 else ""


def as_html(made: dict[str, Any]) -> str:
    """The report as one self-contained page."""
    title = f"{made['scenario']}: {'passed' if made['passed'] else 'FAILED'}"
    facts = json.dumps({k: made[k] for k in ("machine", "snapshots_seen", "gaps")}, indent=1)
    if made["unmeasured"]:
        title = f"{made['scenario']}: no verdict"
    stages, times, memory = stage_table(made), times_table(made["times"]), memory_table(made["memory_bytes"])
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}"
        "table{border-collapse:collapse;margin:.5rem 0 1.5rem}"
        "td,th{border:1px solid #bbb;padding:.2rem .6rem;text-align:left}"
        ".bad{background:#c22;color:#fff}pre{white-space:pre-wrap}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{style}</style>'
        f"<h1>{html.escape(title)}</h1><p>{html.escape(made['url'])}, {html.escape(made['started'])}, "
        f"{made['seconds']} s. Service side: {html.escape(made['service_side'])}. {html.escape(made['unmeasured'])}</p>"
        f"<h2>Verdict</h2>{_html_table(verdict_table(made))}"
        f"{_section('Verdict by stage', stages)}"
        f"{_section('Requests within so many ms, %', times)}"
        f"<h2>Phases (ms)</h2>{_html_table(phase_table(made['phases']))}"
        "<h2>What the cache saves, per query (ms)</h2>"
        "<p>Hits (fresh or stale) beside answers for which the engine ran, while people had time to think."
        f"</p>{_html_table(latency_table(made['queries'], 'query'))}"
        f"{_section('What limits it', limits_table(made['limits']))}"
        f"{_section('Resident memory of the service', memory)}"
        f"<h2>The machine and the run</h2><pre>{html.escape(facts)}</pre></html>\n"
    )


def write(made: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write both files into `folder`; their paths. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{made['scenario']}-{made['started'].replace(':', '').replace('-', '')}"
    as_json, page = folder / f"{stem}.json", folder / f"{stem}.html"
    as_json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    page.write_text(as_html(made), encoding="utf-8")
    return as_json, page
