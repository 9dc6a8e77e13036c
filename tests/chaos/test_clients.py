"""Clients that do harm without a fault: who says nothing, who does not listen, and who asks for more than there is."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.support.production import DOMAIN, ProductionStack
from tests.support.readers import connect, large_sql, post_sql
from tests.support.stack import MEASURED, Json, address, docker

from .conftest import Chaos
from .hosts import metric
from .load import Edge, Question

IDLE_CONNECTIONS = 10_000
READERS = 200
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


def kernel_bytes(container: Json) -> int:
    """What the system holds for clients of the container that have not taken it: the send queues of its connections."""
    lines = docker("exec", container["Id"], "cat", "/proc/net/tcp", "/proc/net/tcp6").splitlines()
    return sum(int(found[1], 16) for line in lines if (found := re.search(r" ([0-9A-F]{8}):[0-9A-F]{8} ", line)))


def total(stack: ProductionStack, pattern: str) -> float:
    """The sum of the replicas' samples that match."""
    return sum(metric(url, pattern) for url in stack.replicas().values())


def answered_with(stack: ProductionStack, status: int) -> float:
    return total(stack, rf'http_requests_total\{{[^}}]*status="{status}"\}}')


class Hoard:
    """Two hundred clients that ask one after the other for 8 MB, half of them for the same, and read nothing."""

    def __init__(self, stack: ProductionStack) -> None:
        self._stack, self._urls = stack, list(stack.replicas().values())
        self.most_memory: dict[str, int] = {}
        self.most_kernel: dict[str, int] = {}
        self.most_unsent = 0.0

    def ask(
        self, open_one: Callable[[], socket.socket], headers: Mapping[str, str], held: contextlib.ExitStack
    ) -> None:
        """Ask when the one before has its first byte, which is all it takes: a queue that is full is another fault."""
        for number in range(READERS):
            connection = held.enter_context(open_one())
            connection.sendall(post_sql(large_sql(number % 2 * number), headers))
            assert connection.recv(1) == b"H"
            if number % 40 == 0:
                self.look()

    def look(self) -> None:
        """Note what edge and replicas hold now."""
        for found in [*self._stack.inspect("query"), *self._stack.inspect("edge")]:
            name = found["Config"]["Labels"]["com.docker.compose.service"]
            self.most_memory[name] = max(self.most_memory.get(name, 0), memory_bytes(found))
            self.most_kernel[name] = max(self.most_kernel.get(name, 0), kernel_bytes(found))
        self.most_unsent = max(self.most_unsent, *(metric(url, "bi_unsent_bytes") for url in self._urls))

    def told(self) -> str:
        """The most that was seen, in one line."""
        parts = [
            f"{name} {size / MIB:.0f} MiB, {self.most_kernel[name] / MIB:.0f} MiB in the system's hands"
            for name, size in self.most_memory.items()
        ]
        return "; ".join([*parts, f"unread large answers of one replica {self.most_unsent / MIB:.0f} MiB"])


def never_read(
    name: str,
    chaos: Chaos,
    stack: ProductionStack,
    open_one: Callable[[], socket.socket],
    headers: Mapping[str, str],
) -> None:
    """The fault and its judgement, whichever door they come through."""
    before, room = restarts(stack), metric(next(iter(stack.replicas().values())), "bi_unsent_max_bytes")
    failures = {status: answered_with(stack, status) for status in (500, 503)}
    cuts = total(stack, "bi_send_cuts_total")
    with chaos.fault(name) as ordeal, contextlib.ExitStack() as held:
        hoard = Hoard(stack)
        hoard.ask(open_one, headers, held)
        hoard.look()
        # They stay where they are; those whose answers were too many to keep have had their refusal.
        ordeal.heals(lambda: total(stack, "bi_unsent_bytes") == 0, "those who do not read to be cut off")
        ordeal.fires("LargeAnswersRefused")
        ordeal.users.more(200)
    MEASURED[f"most held under {name}"] = hoard.told()
    assert 0 < hoard.most_unsent <= room
    assert answered_with(stack, 500) == failures[500], "a replica had no memory left"
    assert answered_with(stack, 503) > failures[503]
    assert total(stack, "bi_send_cuts_total") > cuts
    assert max(hoard.most_kernel.values()) < READERS * 300 * 1024, hoard.told()
    assert restarts(stack) == before, "something was killed"


@contextlib.contextmanager
def many_files(wanted: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        reason = f"this machine lets a process have {hard} open files (ulimit -Hn); the test needs {wanted}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
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


def test_two_hundred_clients_of_a_replica_that_never_read(
    chaos: Chaos, stack: ProductionStack, headers: dict[str, str]
) -> None:
    host = address(stack.inspect("query", running=True)[0])
    never_read("200 clients of a replica that never read", chaos, stack, lambda: connect(host, 8000), headers)


def test_two_hundred_clients_of_the_edge_that_never_read(
    chaos: Chaos, stack: ProductionStack, headers: dict[str, str], edge: Edge
) -> None:
    host = address(stack.inspect("edge")[0])
    name = "200 clients of the edge that never read"

    def open_one() -> socket.socket:
        return edge.authority.wrap_socket(connect(host, 443), server_hostname=DOMAIN)

    never_read(name, chaos, stack, open_one, {**headers, "Host": DOMAIN})
