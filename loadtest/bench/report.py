"""results.json (all rounds, medians, ratios, versions, machine) and RESULTS.md (the table)."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import uvicorn

from .measure import CONNECTIONS, TIMEOUT_SECONDS, Figures
from .rounds import HIT_KEYS, HIT_KIND, MISS_KIND, Row, Size, medians
from .systems.base import System
from .workload import NEW_SHARE, ZIPF_EXPONENT

Document = dict[str, Any]

# What the benchmark is to show: at least, or at most.
AIMS: dict[str, tuple[str, float]] = {
    "hit_vs_asgi": (">=", 0.40),
    "hit_vs_fastapi": (">=", 1.0),
    "miss_vs_duckdb": (">=", 0.85),
    "mixed_vs_roapi": (">=", 10),
    "mixed_vs_brief": (">=", 5),
    "p99_vs_p50_30_users": ("<", 10),
}
PEERS = ("brief", "roapi", "datasette", "datasette_parquet")


def ratios(of: Mapping[str, Figures]) -> dict[str, float | None]:
    """Ratios of medians; None where the other side finished nothing. DuckDB counts with its better number of threads."""
    rate = {name: figures["requests_per_second"] for name, figures in of.items()}

    def over(one: str, other: float) -> float | None:
        return rate[one] / other if other else None

    made: dict[str, float | None] = {}
    for hit in ("hit", "hit_redis"):
        for ceiling in ("asgi", "fastapi"):
            made[f"{hit}_vs_{ceiling}"] = over(hit, rate[ceiling])
    for kind in ("", "_mixed"):
        made[f"miss{kind}_vs_duckdb"] = over(f"miss{kind}", max(rate[name] for name in alone(of, kind)))
    for peer in PEERS:
        if f"mixed_{peer}" in rate:
            made[f"mixed_vs_{peer}"] = over("mixed_service", rate[f"mixed_{peer}"])
    for name, row in (("30_users", "mixed_service"), ("hit", "hit"), ("miss", "miss")):
        made[f"p99_vs_p50_{name}"] = of[row]["p99_ms"] / of[row]["p50_ms"] if of[row]["p50_ms"] else None
    return made


def alone(of: Mapping[str, Figures], kind: str) -> list[str]:
    """Names of DuckDB's own rows on the questions of `miss` + `kind`."""
    return [name for name in of if name.startswith(f"duckdb{kind}_threads_")]


def document(
    rows: Sequence[Row],
    measured: dict[str, list[Figures]],
    size: Size,
    compared: int,
    body: int,
    systems: Sequence[System],
) -> Document:
    """Everything that results.json holds."""
    middle = medians(measured)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "processor": _processor(), "system": platform.platform()},
        "versions": {
            "python": platform.python_version(),
            "duckdb": duckdb.__version__,
            "uvicorn": uvicorn.__version__,
            "redis": _first_line("redis-server", "--version"),
            "wrk": _first_line("wrk", "--version"),
            **{system.name: system.version for system in systems if system.version},
        },
        "method": {
            "rounds": size.rounds,
            "round_seconds": size.seconds,
            "peer_round_seconds": size.peer_seconds,
            "connections": CONNECTIONS,
            "timeout_seconds": TIMEOUT_SECONDS,
            "hit": {"query": HIT_KIND, "cache_keys": HIT_KEYS, "answer_bytes": body},
            "miss": {"query": MISS_KIND},
            "mixed": {"new_share": NEW_SHARE, "zipf_exponent": ZIPF_EXPONENT},
            "questions_compared": compared,
            "load_average_at_end": os.getloadavg(),
        },
        "given": {system.title: system.given for system in systems},
        "titles": {row.name: row.title for row in rows},
        "rounds": measured,
        "medians": middle,
        "ratios": ratios(middle),
    }


def write(document: Document, folder: Path) -> None:
    """Both files."""
    (folder / "results.json").write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
    (folder / "RESULTS.md").write_text(as_markdown(document))


def as_markdown(document: Document) -> str:
    """The table and what is needed to read it."""
    method, machine, middle = document["method"], document["machine"], document["medians"]
    note = (
        "**A quick run: it checks that the benchmark works, its numbers say little.**\n\n"
        if method.get("quick")
        else ""
    )
    parts = [
        f"# Benchmark\n\nWritten by `make bench` on {document['date']}. How to read it: docs/performance.md.\n\n{note}"
        f"Medians of {method['rounds']} interleaved rounds of {method['round_seconds']:g} s, {method['connections']} "
        f"connections, {machine['cores']} cores ({machine['processor']}). Peers without a cache get rounds of "
        f"{method['peer_round_seconds']:g} s. Compare rows of one table with each other, not with other machines.",
        _ratio_table(document["ratios"]),
        "## Hits\n\nThe same "
        f"{method['hit']['answer_bytes']:,} bytes (`{method['hit']['query']}`) everywhere; the service holds them under "
        f"{method['hit']['cache_keys']} keys.\n\n" + _table(document, ["hit", "hit_redis", "fastapi", "asgi"]),
        "## Misses\n\nNo question is asked twice in a round; the service looks in both tiers, computes and stores.\n\n"
        + _table(document, [n for n in middle if n.startswith(("miss", "duckdb"))]),
        _where(middle, machine["cores"]),
        f"## Mixed\n\nFive kinds of question; one in {1 / method['mixed']['new_share']:.0f} was never asked before, the "
        f"others repeat earlier ones (Zipf, {method['mixed']['zipf_exponent']}). Caches are empty when a round begins. "
        + (
            f"All systems gave the same numbers on {method['questions_compared']} questions before anything was timed.\n\n"
            if method["questions_compared"]
            else "Peers were left out of this run.\n\n"
        )
        + _table(document, [name for name in middle if name.startswith("mixed")]),
        "## What each was given\n\n" + "\n".join(f"- **{name}**: {text}." for name, text in document["given"].items()),
        "## Versions\n\n" + "\n".join(f"- {name}: {version}" for name, version in document["versions"].items()),
    ]
    return "\n\n".join(parts) + "\n"


def _table(document: Document, names: Sequence[str]) -> str:
    lines = [
        "| | answers/s | p50 ms | p95 ms | p99 ms | refused | time-outs | broken |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        figures = document["medians"][name]
        shown = [_short(figures[key]) for key in ("requests_per_second", "p50_ms", "p95_ms", "p99_ms")]
        rounds = document["rounds"][name]
        counts = ("refused", "timeouts", "failed_sockets")
        wrong = [f"{sum(one[key] for one in rounds):.0f}" if key in figures else "" for key in counts]
        lines.append(f"| {document['titles'][name]} | {' | '.join([*shown, *wrong])} |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 50 else f"{value:,.0f}"


def _ratio_table(values: Mapping[str, float | None]) -> str:
    lines = ["| ratio | value | aim | |", "| --- | --- | --- | --- |"]
    for name, value in values.items():
        sign, aim = AIMS.get(name, ("", 0.0))
        met = value is not None and (value >= aim if sign == ">=" else value < aim)
        shown = "none finished" if value is None else f"{value:.2f}"
        lines.append(
            f"| {name} | {shown} | {f'{sign} {aim:g}' if sign else ''} | {('met' if met else 'missed') if sign else ''} |"
        )
    return "\n".join(lines)


def _where(of: Mapping[str, Figures], cores: int) -> str:
    """Where a miss' time goes: the engine's own time beside DuckDB alone, and each process' processor time."""
    lines = [
        "Where a miss' time goes (ms for each answer):",
        "",
        "| | `miss` | `miss_mixed` |",
        "| --- | --- | --- |",
    ]
    columns = []
    for kind in ("", "_mixed"):
        miss, best = of[f"miss{kind}"], max(of[name]["requests_per_second"] for name in alone(of, kind))
        each = 1000 / max(miss["answers"], 1)
        columns.append(
            {
                "DuckDB alone: cores x time / queries": 1000 * cores / best,
                "the service: cores x time / answers": 1000 * cores / max(miss["requests_per_second"], 1e-9),
                "running in the engine, encoding included": miss["engine_seconds"] * 1000 / max(miss["engine_runs"], 1),
                "waiting for its turn in the engine's queue": miss["wait_seconds"] * 1000 / max(miss["engine_runs"], 1),
                "processor, service": miss["cpu_system_seconds"] * each,
                "processor, Redis": miss["cpu_redis_seconds"] * each,
                "processor, wrk": miss["cpu_wrk_seconds"] * each,
                "share of lookups that were hits": 100 * _hit_share(miss),
            }
        )
    for name in columns[0]:
        unit = " %" if name.startswith("share") else ""
        lines.append(f"| {name} | {columns[0][name]:.2f}{unit} | {columns[1][name]:.2f}{unit} |")
    return "\n".join(lines)


def _hit_share(miss: Figures) -> float:
    hits = miss["hit_memory"] + miss["hit_redis"]
    return hits / max(hits + miss["miss_none"], 1)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.processor()


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).partition("\n")[0].strip()
