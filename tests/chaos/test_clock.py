"""Clocks of containers jump by an hour, forward, back, back again and forward: one replica's, Redis', and all of theirs.

Replicas and Redis are made anew with a clock of ours in front of the system's, and as they are shipped afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.support.clock import HOUR, JUMPS, built_into, environment, offset
from tests.support.production import ProductionStack
from tests.support.service import wait_until
from tests.support.stack import docker

from .conftest import Chaos, Ordeal
from .hosts import share_answers

LIBRARY = Path("/opt/clock.so")
# Where each container may write, and no other sees it.
CLOCKS = {"query": Path("/tmp/clock"), "redis": Path("/data/clock")}
Turn = Callable[[int], None]


@pytest.fixture(scope="module")
def turning(stack: ProductionStack, folder: Path) -> Iterator[None]:
    """Replicas and Redis whose clocks can be turned."""
    library = built_into(folder)
    services = {
        name: {"environment": environment(LIBRARY, clock), "volumes": [f"{library}:{LIBRARY}:ro"]}
        for name, clock in CLOCKS.items()
    }
    overlay = folder / "clocks.yaml"
    overlay.write_text(yaml.safe_dump({"services": services}))
    shipped = stack.env.read_text()
    files = next(line for line in shipped.splitlines() if line.startswith("COMPOSE_FILE="))
    try:
        stack.env.write_text(f"{shipped}{files}:{overlay}\n")
        stack.up(*services)
        yield
    finally:
        stack.env.write_text(shipped)
        stack.up(*services)


def set_clock(service: str, container: str, seconds: int) -> None:
    """Be so much ahead of the true time (behind, where negative)."""
    clock = CLOCKS[service]
    docker("exec", container, "sh", "-c", f"echo {seconds:+d} > {clock}.turned && mv {clock}.turned {clock}")


def redis_offset(container: str) -> float:
    """By how many seconds the clock of Redis is ahead of the true one, as it says itself."""
    command = "REDISCLI_AUTH=$(cat /run/bi-secrets/redis-admin-password) redis-cli --user admin time"
    return int(docker("exec", container, "sh", "-c", command).split()[0]) - time.time()


def turn_replica(container: str, url: str, seconds: int) -> None:
    """Turn a replica's clock; until its answers tell of it."""
    set_clock("query", container, seconds)
    wait_until(lambda: abs(offset(url) - seconds) < 10, what=lambda: f"{seconds} s, not {offset(url)}")


def turn_redis(stack: ProductionStack, seconds: int) -> None:
    """Turn the clock of Redis; until it tells of it."""
    container = stack.inspect("redis")[0]["Id"]
    set_clock("redis", container, seconds)
    wait_until(
        lambda: abs(redis_offset(container) - seconds) < 10, what=lambda: f"{seconds} s, not {redis_offset(container)}"
    )


def a_hit(url: str, headers: dict[str, str]) -> httpx.Response:
    """The second of two answers. On a machine that stalls the first may have expired by then: once more."""

    def asked_twice() -> httpx.Response | None:
        first, again = (httpx.get(url, headers=headers, timeout=30) for _ in range(2))
        assert [first.status_code, again.status_code] == [200, 200]
        return again if again.headers["X-Cache"] == "hit" else None

    found = wait_until(asked_twice, what="a hit")
    assert found is not None
    return found


def jump(ordeal: Ordeal, stack: ProductionStack, turn: Turn) -> None:
    """All the jumps, with answers between them from every replica whose times make sense; then all is as before."""
    for number, seconds in enumerate(JUMPS):
        turn(seconds)
        ordeal.users.more(200)
        for url in stack.replicas().values():
            again = a_hit(f"{url}/api/v1/queries/shops?limit={50 + number}", dict(ordeal.users.edge.headers))
            # The other replica may have stored it, at a time that is an hour away from this one's.
            assert 0 <= int(again.headers["Age"]) <= HOUR + 60
    ordeal.heals(lambda: share_answers(stack, ordeal.users.edge.headers), "the replicas to share answers")


def test_the_clock_of_one_replica_jumps_by_an_hour(chaos: Chaos, stack: ProductionStack, turning: None) -> None:
    container, url = next(iter(stack.replicas().items()))
    with chaos.fault("the clock of one replica jumps by an hour") as ordeal:
        jump(ordeal, stack, lambda seconds: turn_replica(container, url, seconds))


def test_the_clock_of_redis_jumps_by_an_hour(chaos: Chaos, stack: ProductionStack, turning: None) -> None:
    with chaos.fault("the clock of Redis jumps by an hour") as ordeal:
        jump(ordeal, stack, lambda seconds: turn_redis(stack, seconds))


def test_the_clocks_of_all_replicas_and_redis_jump_by_an_hour(
    chaos: Chaos, stack: ProductionStack, turning: None
) -> None:
    def turn(seconds: int) -> None:
        for container, url in stack.replicas().items():
            turn_replica(container, url, seconds)
        turn_redis(stack, seconds)

    with chaos.fault("the clocks of all replicas and Redis jump by an hour") as ordeal:
        jump(ordeal, stack, turn)
