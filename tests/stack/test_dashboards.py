"""Every query of every dashboard returns data on a live Prometheus, under traffic of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.dashboards import Query, iter_queries
from tests.support.service import wait_until
from tests.support.stack import ROOT, Prometheus, Stack

from .traffic import Traffic, everything, traffic

WITHIN_SECONDS = 180.0
# Panels that cannot have data here, and why: (dashboard, panel). Empty: those of the load test say 0 while none runs.
WITHOUT_DATA: dict[tuple[str, str], str] = {}
# Exporters left out of the check below, and why.
NOT_RUNNING = {"loadtest": "no load test runs during these tests"}


@pytest.fixture(scope="module")
def users(stack: Stack) -> Iterator[Traffic]:
    """Traffic of every kind while this file's tests run."""
    with traffic(stack, everything, users=4, pause_seconds=0.03) as seen:
        yield seen


def without_data(prometheus: Prometheus, queries: list[Query]) -> list[Query]:
    return [query for query in queries if not prometheus.numbers(query.expr)]


def test_every_panel_and_variable_has_data(users: Traffic, prometheus: Prometheus) -> None:
    queries = list(iter_queries())
    assert len(queries) > 150 and len({query.dashboard for query in queries}) >= 6
    left = [query for query in queries if (query.dashboard, query.panel) not in WITHOUT_DATA]

    def all_have_data() -> bool:
        left[:] = without_data(prometheus, left)
        return not left

    wait_until(
        all_have_data,
        WITHIN_SECONDS,
        what=lambda: "data for " + "; ".join(f"{q.dashboard} / {q.panel}: {q.expr}" for q in left),
    )


def test_no_panel_is_excused_that_has_data(users: Traffic, prometheus: Prometheus) -> None:
    excused = [query for query in iter_queries() if (query.dashboard, query.panel) in WITHOUT_DATA]
    assert without_data(prometheus, excused) == excused


def test_traffic_of_every_kind_shows_in_the_metrics(users: Traffic, prometheus: Prometheus) -> None:
    """The panels above had data, and not zeros alone: what users did is counted, on both replicas."""
    for expr in (
        'count(sum by (instance) (increase(http_requests_total{job="query", status="200"}[3m])) > 0) == 2',
        'sum(increase(http_requests_total{job="query", status="400"}[3m])) > 0',
        'sum(increase(http_requests_total{job="query", status="404"}[3m])) > 0',
        'sum(increase(http_requests_total{job="query", status="429"}[3m])) > 0',
        'sum(increase(bi_rate_limit_rejections_total{job="query"}[3m])) > 0',
        'sum(increase(bi_guard_refusals_total{job="query"}[3m])) > 0',
        'sum(increase(bi_cache_requests_total{job="query", result="hit", tier="memory"}[3m])) > 0',
        'sum(increase(bi_cache_requests_total{job="query", result="hit", tier="redis"}[3m])) > 0',
        'sum(increase(bi_cache_requests_total{job="query", result="miss"}[3m])) > 0',
        'sum(increase(bi_cache_requests_total{job="query", result="bypass"}[3m])) > 0',
        'sum(increase(bi_cache_invalidations_total{job="query", scope="remote"}[3m])) > 0',
        'sum(increase(bi_engine_truncated_results_total{job="query"}[3m])) > 0',
        'sum(increase(bi_engine_queries_total{job="query", outcome="timeout"}[3m])) > 0',
        'count(sum by (format) (increase(bi_engine_result_bytes_total{job="query"}[3m])) > 0) >= 4',
        'sum(rate(redis_keyspace_hits_total{job="redis"}[3m])) > 0',
        "bi:cache_hit:ratio > 0",
        'sum(increase(bi_chat_answers_total{job="query", by="matcher", outcome="named"}[3m])) > 0',
        'sum(increase(bi_chat_answers_total{job="query", by="model", outcome="sql"}[3m])) > 0',
        'sum(increase(bi_chat_answers_total{job="query", by="model", outcome="cannot_answer"}[3m])) > 0',
        'count(sum by (direction) (increase(llm_tokens_total{job="query", model="scripted"}[3m])) > 0) == 2',
        'sum(increase(bi_llm_retries_total{job="query", reason="rate_limited"}[3m])) > 0',
        'sum(increase(bi_llm_retries_total{job="query", reason="malformed"}[3m])) > 0',
        'sum(increase(bi_chat_sql_retries_total{job="query"}[3m])) > 0',
        'sum(increase(bi_chat_plan_hits_total{job="query"}[3m])) > 0',
        "bi:llm_budget:used_ratio > 0",
    ):
        wait_until(partial(prometheus.query, expr), 60, what=expr)


def exporter_metrics() -> list[Any]:
    text = (ROOT / "tests/config/exporter_metrics.yaml").read_text()
    listed: dict[str, list[str]] = yaml.safe_load(text)
    return [
        pytest.param(exporter, names, id=exporter) for exporter, names in listed.items() if exporter not in NOT_RUNNING
    ]


@pytest.mark.parametrize(("exporter", "names"), exporter_metrics())
def test_every_metric_of_an_exporter_that_dashboards_name_exists(
    exporter: str, names: list[str], users: Traffic, prometheus: Prometheus
) -> None:
    missing = [name for name in names if not prometheus.query(f"count({name}) > 0")]
    assert not missing


def test_a_panel_that_names_a_metric_nobody_has_is_noticed(prometheus: Prometheus, tmp_path: Path) -> None:
    source = (ROOT / "dashboards/Service/cache.json").read_text()
    broken = tmp_path / "broken.json"
    broken.write_text(source.replace("bi_cache_entries{", "bi_cache_entrys{"))
    wrong = without_data(prometheus, list(iter_queries(broken)))
    assert [query.panel for query in wrong if "entrys" in query.expr] == ["Entries held"]
