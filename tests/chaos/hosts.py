"""What the faults do to processes and containers, and what a replica says of itself."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

import httpx

from tests.support.stack import Json, Stack, compose_image, docker

KILL = "import os, sys; os.kill(int(sys.argv[1]), 9)"


def kill(pid: int) -> None:
    """End a container's first process as the kernel would: `docker kill` counts as asked for and is not restarted."""
    flags = ["run", "--rm", "--pid", "host", "--user", "0", "--network", "none", "--entrypoint", "python"]
    docker(*flags, compose_image("BI_QUERY_IMAGE"), "-c", KILL, str(pid))


def metric(url: str, pattern: str) -> float:
    """The sum of a replica's samples that match."""
    text = httpx.get(f"{url}/metrics", timeout=10).text
    return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", text, re.M))


def container(stack: Stack, identity: str) -> Json:
    """What the engine knows of one container of the service now."""
    return next(found for found in stack.inspect("query") if found["Id"] == identity)


def is_healthy(found: Json) -> bool:
    """Whether its health check says so."""
    return bool(found["State"]["Running"] and found["State"]["Health"]["Status"] == "healthy")


def circuits_open(stack: Stack) -> float:
    """How many replicas do not ask Redis for now."""
    return sum(metric(url, "bi_cache_redis_circuit_open") for url in stack.replicas().values())


def share_answers(stack: Stack, headers: Mapping[str, str]) -> bool:
    """Whether every replica trusts Redis, and what one has just computed the other finds there."""
    if circuits_open(stack):
        return False
    one, other = stack.replicas().values()
    sql = {"sql": f"select {time.monotonic_ns()} as asked"}
    answers = [httpx.post(f"{url}/api/v1/query", json=sql, headers=dict(headers), timeout=10) for url in (one, other)]
    return answers[1].headers["X-Cache"] == "hit"
