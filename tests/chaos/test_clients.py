"""Clients that do harm without a fault: who says nothing, and who asks for more than there is."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator

from tests.support.production import ProductionStack
from tests.support.stack import MEASURED, Json, address, docker

from .conftest import Chaos
from .load import Edge, Question

IDLE_CONNECTIONS = 10_000
MIB = 1024 * 1024
# A billion rows of a hundred bytes, sorted.
HUNDRED_GIGABYTES = (
    "select count(*) as n from (select row_number() over (order by hash(i)) as place, repeat(i::varchar, 10) as text"
    " from range(1000000000) t(i)) where place % 7 = 0 and text > '5'"
)


def restarts(stack: ProductionStack) -> dict[str, int]:
    return {found["Id"]: found["RestartCount"] for found in [*stack.inspect("query"), *stack.inspect("edge")]}


def memory_bytes(container: Json) -> int:
    """What the kernel counts against the container's limit."""
    paths = "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes"
    command = f"cat {paths[0]} 2>/dev/null || cat {paths[1]}"
    return int(docker("exec", container["Id"], "sh", "-c", command))


@contextlib.contextmanager
def many_files(wanted: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= wanted, f"this machine lets a process have {hard} files; the test needs {wanted}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ten_thousand_idle_connections(chaos: Chaos, stack: ProductionStack) -> None:
    before = restarts(stack)
    # To the edge's own address: between a published port of this machine and the edge stands docker's proxy.
    door = (address(stack.inspect("edge")[0]), 443)
    with (
        many_files(IDLE_CONNECTIONS + 2000),
        chaos.fault("10,000 idle connections") as ordeal,
        contextlib.ExitStack() as held,
    ):
        for _ in range(IDLE_CONNECTIONS):
            held.enter_context(socket.create_connection(door, 20))
        taken = memory_bytes(stack.inspect("edge")[0])
        ordeal.users.more(500)
        ordeal.heals(lambda: memory_bytes(stack.inspect("edge")[0]) < taken / 2, "the edge to have cut them off")
    MEASURED["memory of the edge under 10,000 idle connections"] = f"{taken / MIB:.0f} MiB"
    assert restarts(stack) == before, "something was killed"


def test_a_query_that_would_need_a_hundred_gigabytes(chaos: Chaos, stack: ProductionStack, edge: Edge) -> None:
    before = restarts(stack)
    with chaos.fault("a query that would need 100 GB"):
        answers = [edge.ask(Question("/api/v1/query", HUNDRED_GIGABYTES)) for _ in range(2)]
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} <= {
        (422, "query_too_large"),
        (504, "query_timeout"),
    }, [answer.text for answer in answers]
    assert restarts(stack) == before, "something was killed"
