"""What Prometheus may scrape from the load generator while it runs, and the verdict at its end."""

from __future__ import annotations

from collections.abc import Collection

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from .verdict import Row


class Gauges:
    """The gauges that dashboards/source/loadtest.yaml shows."""

    def __init__(self, scenario: str) -> None:
        self.registry = CollectorRegistry()
        self._scenario = scenario
        self.users = Gauge("bi_loadtest_users", "Users simulated now.", registry=self.registry)
        self.rate = Gauge(
            "bi_loadtest_requests_per_second", "Requests per second, last 10 s, at the client.", registry=self.registry
        )
        self.p95 = Gauge(
            "bi_loadtest_p95_seconds", "95th percentile, last 10 s, at the client.", registry=self.registry
        )
        self.failures = Gauge(
            "bi_loadtest_failures_ratio", "Share of failed requests, last 10 s, at the client.", registry=self.registry
        )
        self.verdict = Gauge(
            "bi_loadtest_last_verdict", "1 when met, 0 when missed.", ("scenario", "slo"), registry=self.registry
        )

    def serve(self, port: int, host: str) -> None:
        """Offer /metrics on `host`:`port`. Raises OSError."""
        start_http_server(port, host, registry=self.registry)

    def show(self, users: float, rate: float, p95: float, failures: float) -> None:
        """Set what is measured now."""
        self.users.set(users)
        self.rate.set(rate)
        self.p95.set(p95)
        self.failures.set(failures)

    def judged(self, rows: Collection[Row]) -> None:
        """Set the verdict: the judged lines."""
        for row in rows:
            if row.judged:
                self.verdict.labels(self._scenario, row.slo).set(row.passed)
