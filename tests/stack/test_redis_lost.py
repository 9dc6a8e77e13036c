"""Redis stopped, paused and emptied under traffic through the edge: slower at most, never an error; then it heals."""

from __future__ import annotations

import re
import time

import httpx
import pytest

from tests.support.service import wait_until
from tests.support.stack import Stack

from .traffic import Traffic, traffic

FLUSH = "REDISCLI_AUTH=$(cat /run/bi-secrets/redis-admin-password) redis-cli --user admin flushall"


def metric(url: str, pattern: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=10).text
    return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", text, re.M))


def redis_hits(stack: Stack) -> float:
    return sum(
        metric(url, r'bi_cache_requests_total\{.*result="hit".*tier="redis".*\}') for url in stack.replicas().values()
    )


def circuits_open(stack: Stack) -> float:
    return sum(metric(url, "bi_cache_redis_circuit_open") for url in stack.replicas().values())


def more(users: Traffic, answers: int) -> None:
    wanted = users.answered + answers
    wait_until(lambda: users.answered >= wanted, 60, what=f"{answers} more answers")


def mixed(client: httpx.Client, number: int) -> httpx.Response:
    """Questions that need Redis: the answers are in no replica's memory, for each expires within a second."""
    if number % 3 == 0:
        return client.get("/api/v1/queries/shops", params={"limit": int(time.time()) % 100 + 1})
    return client.get("/api/v1/queries/quick")


@pytest.mark.parametrize(
    ("lose", "heal"), [(("stop", "-t", "5"), "start"), (("pause",), "unpause")], ids=["stopped", "paused"]
)
def test_redis_gone_under_traffic_fails_no_request_and_heals(stack: Stack, lose: tuple[str, ...], heal: str) -> None:
    with traffic(stack, mixed, users=4) as users:
        more(users, 100)
        try:
            stack.compose(lose[0], *lose[1:], "redis")
            wait_until(lambda: circuits_open(stack) > 0, 30, what="a replica to give up on Redis for now")
            more(users, 300)
        finally:
            stack.compose(heal, "redis")
        wait_until(lambda: circuits_open(stack) == 0, 60, what="every replica to trust Redis again")
        before = redis_hits(stack)
        wait_until(lambda: redis_hits(stack) > before, 30, what="answers out of Redis again")
    assert users.failures == [] and set(users.statuses) == {200}
    assert users.slowest < 5


def test_redis_emptied_under_traffic_fails_no_request_and_fills_again(stack: Stack) -> None:
    with traffic(stack, mixed, users=4) as users:
        more(users, 100)
        stack.compose("exec", "-T", "redis", "sh", "-c", FLUSH)
        hits = redis_hits(stack)
        wait_until(lambda: redis_hits(stack) > hits, 30, what="answers out of Redis again")
        more(users, 100)
    assert users.failures == [] and set(users.statuses) == {200}
