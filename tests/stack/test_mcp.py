"""Agents through the edge, to two replicas: the official SDK's client with the stack's first key."""

from __future__ import annotations

import contextlib
import time

import pytest

from tests.support.agent import MODES, Agent
from tests.support.service import wait_until
from tests.support.stack import Stack, docker


@pytest.mark.parametrize("mode", MODES)
def test_an_agent_is_answered_through_the_edge_by_any_replica(stack: Stack, mode: str) -> None:
    agent = Agent(stack.url("QUERY"), stack.key["X-API-Key"], mode)
    assert list(agent.tools()) == ["list_queries", "run_query", "list_tables", "run_sql"]
    for i in range(8):
        assert agent.rows("run_sql", sql=f"select {i} as {mode}") == [[i]]
    code, _ = agent.refusal("run_sql", sql="select * from read_parquet('/etc/passwd')")
    assert code == "forbidden_function"

    def both() -> bool:
        agent.rows("run_sql", sql=f"select {time.monotonic_ns()}")  # the edge chooses at random between idle replicas
        return all('"tool":"run_sql"' in docker("logs", "--since", "60s", replica) for replica in stack.replicas())

    wait_until(both, 20, what="both replicas to have answered")


@pytest.mark.parametrize("mode", MODES)
def test_a_query_stops_when_its_agent_goes_away_though_the_edge_is_between(stack: Stack, mode: str) -> None:
    def cancelled() -> float:
        texts = [stack.get("/metrics", url).text.splitlines() for url in stack.replicas().values()]
        wanted = 'bi_engine_queries_total{outcome="cancelled",query="slow"}'
        return sum(float(line.split()[1]) for lines in texts for line in lines if line.startswith(wanted))

    before = cancelled()
    agent = Agent(stack.url("QUERY"), stack.key["X-API-Key"], mode)

    def stopped() -> bool:
        """Again, when the query had not begun by then, or had run into its own time-out before word of the leaving came."""
        agent.abandon("run_query", {"name": "slow", "parameters": {"size": 1_000_000}}, after_seconds=1)
        with contextlib.suppress(AssertionError):
            return wait_until(lambda: cancelled() > before, 4)
        return False

    wait_until(stopped, 40, what="the query to be stopped")
