"""`down` and `up` keep what people would miss: metrics, snapshots, secrets and Grafana's database."""

from __future__ import annotations

import time

from tests.support.service import wait_until
from tests.support.stack import MEASURED, Prometheus, Stack, has_grafana, volume_files


def answer(stack: Stack) -> tuple[str, str]:
    got = stack.get("/api/v1/queries/shops")
    assert got.status_code == 200, got.text
    return got.headers["X-Data-Version"], got.text


def test_down_and_up_keep_metrics_snapshots_and_secrets(stack: Stack, prometheus: Prometheus) -> None:
    before, secrets, snapshots = answer(stack), volume_files(stack, "secrets"), set(volume_files(stack, "snapshots"))
    moment = time.time() - 20
    (requests,) = prometheus.numbers('sum(http_requests_total{job="query"})', moment)
    assert requests > 0
    database = volume_files(stack, "grafana").get("grafana.db") if has_grafana() else None

    stack.down(volumes=False)
    assert stack.inspect() == []
    MEASURED["from up to healthy, the second time"] = f"{stack.up():.1f} s"

    assert answer(stack) == before
    assert volume_files(stack, "secrets") == secrets
    assert set(volume_files(stack, "snapshots")) >= {name for name in snapshots if name.endswith(".duckdb")}
    assert prometheus.numbers('sum(http_requests_total{job="query"})', moment) == [requests]
    if database is not None:
        assert volume_files(stack, "grafana").get("grafana.db")

    def scraped() -> bool:
        # Of the targets, not of `up`: a Prometheus that was down never marked the old addresses' series as ended.
        targets = prometheus.get("targets?state=active")["activeTargets"]
        return [t["health"] for t in targets if t["labels"]["job"] == "query"] == ["up", "up"]

    wait_until(scraped, 60, what="both replicas to be scraped again")
