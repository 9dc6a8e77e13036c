"""One replica killed, paused, out of memory: the edge hides it, and it comes back by itself."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.support.production import ProductionStack
from tests.support.service import wait_until
from tests.support.stack import docker

from .conftest import CUT_BY_A_KILL, EDGE_WAITS_SECONDS, Chaos
from .hosts import container, is_healthy, kill, metric
from .load import USERS, Edge, Question

# Single values, which DuckDB asks of the system and not of its own budget, and one that its budget does hold.
HOSTILE = [
    "select len(generate_series(1, 400000000)) as n",
    "select length(repeat('x', 1000000000) || repeat('y', 1000000000)) as n",
    "select len(list(a.amount + b.amount)) as n from sales a, sales b, sales c",
]
ANSWERED = r'http_requests_total\{endpoint="/api/v1/quer.*status="200"\}'


def test_a_replica_killed(chaos: Chaos, stack: ProductionStack) -> None:
    victim = stack.inspect("query", running=True)[0]

    def back() -> bool:
        now = container(stack, victim["Id"])
        return bool(now["RestartCount"] > victim["RestartCount"] and is_healthy(now))

    with chaos.fault("one replica killed", may_cut=CUT_BY_A_KILL) as ordeal:
        killed = time.monotonic()
        kill(victim["State"]["Pid"])
        ordeal.heals(back, "the killed replica to be back", since=killed)


def test_a_replica_restarted_politely(chaos: Chaos, stack: ProductionStack) -> None:
    victim = stack.inspect("query", running=True)[0]["Id"]
    with chaos.fault("one replica restarted") as ordeal:
        asked = time.monotonic()
        docker("restart", victim, timeout=90)
        ordeal.heals(lambda: is_healthy(container(stack, victim)), "the replica to be back", since=asked)


def test_a_replica_paused(chaos: Chaos, stack: ProductionStack) -> None:
    """It accepts connections and never answers: the edge waits as long as an answer may take, then asks the other.

    Within a second the edge's own look at each replica has taken it out, so few are caught by it.
    """
    victim = stack.inspect("query", running=True)[0]
    url = stack.replicas()[victim["Id"]]
    with chaos.fault("one replica paused", may_cut=("POST",)) as ordeal:
        docker("pause", victim["Id"])
        try:
            waited = EDGE_WAITS_SECONDS - 1
            wait_until(lambda: ordeal.users.slowest > waited, 30, what="users that it caught to be answered")
        finally:
            docker("unpause", victim["Id"])
        before = metric(url, ANSWERED)
        ordeal.heals(lambda: metric(url, ANSWERED) > before, "the edge to ask the replica again")
    assert ordeal.users.slow <= USERS


def test_hostile_queries_that_ask_the_system_for_gigabytes(chaos: Chaos, stack: ProductionStack, edge: Edge) -> None:
    before = {found["Id"]: found["RestartCount"] for found in stack.inspect("query")}
    with chaos.fault("hostile queries for more memory than there is") as ordeal:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda sql: edge.ask(Question("/api/v1/query", sql)), HOSTILE * 3))
        urls = stack.replicas().values()
        ordeal.heals(lambda: all(httpx.get(f"{u}/health/ready").is_success for u in urls), "every replica to be ready")
    assert {answer.status_code for answer in answers} <= {422, 504}, [answer.text for answer in answers]
    assert {found["Id"]: found["RestartCount"] for found in stack.inspect("query")} == before, "a replica was killed"
