"""Objectives, and what the two sides of a load test say, for tests of its judgement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from loadtest.measured import Measured
from loadtest.objectives import Objectives, load_objectives
from loadtest.questions import AD_HOC_ENDPOINT, NAMED_ENDPOINT
from loadtest.verdict import ALL, Row, Window, judge

DOCUMENT: dict[str, Any] = {
    "scope": {"job": "query", "endpoints": "/api/.*"},
    "users": 4,
    "throughput": {"requests_per_second": 10},
    "availability": {
        "objective_percent": 90,
        "bad_status": "5..",
        "client_caused": [{"endpoint": AD_HOC_ENDPOINT, "status": "504"}],
    },
    "latency": {"objective_percent": 80, "threshold_seconds": 1, "p95_seconds": 0.5},
    "cache": {"hit_rate_percent": 50, "hit_results": ["hit", "coalesced"], "ignored_results": ["bypass"]},
}


def objectives(tmp_path: Path, **changes: Any) -> Objectives:
    path = tmp_path / "slo.yaml"
    path.write_text(yaml.safe_dump({**DOCUMENT, **changes}))
    return load_objectives(path)


GOOD = Measured(
    requests=1000, bad=0, within_threshold=1000, within_p95=1000, lookups=900, hits=800, limited=0, refused=0,
    p95_seconds=0.1, requests_per_second=50.0, users=4,
)  # fmt: skip


def verdict(goals: Objectives, client: Measured, service: Measured | None) -> dict[str, Row]:
    window = Window("people", {"people": client}, client, service, thinking=False)
    return {row.slo: row for row in judge(goals, ALL, [window], 4)}


def failing(rows: dict[str, Row]) -> set[str]:
    return {slo for slo, row in rows.items() if not row.passed}


def counters(status: str = "200", requests: float = 10, fast: float = 10) -> dict[Any, float]:
    where = ("endpoint", NAMED_ENDPOINT)
    made = {("http_requests_total", (where, ("method", "GET"), ("status", status))): requests}
    for edge, count in (("0.5", fast), ("1.0", fast), ("+Inf", requests)):
        made["http_request_duration_seconds_bucket", (where, ("le", edge))] = count
    return made
