"""The budget of large answers, and the connection that is not waited for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import uvicorn
from bi_query.errors import ConfigurationError, Overloaded
from bi_query.http_protocol import Outbox, impatient, keep_little_in_the_kernel
from bi_query.metrics import Metrics
from bi_query.settings import load_settings
from bi_query.unsent import LARGE_BYTES, Held, Unsent

from tests.support.readers import connect, get
from tests.support.service import free_port, wait_until

MIB = 2**20


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def counted(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("bi_unsent_bytes") or 0.0


def test_a_claim_grows_with_its_answer_and_ends_with_whoever_had_it(metrics: Metrics) -> None:
    unsent = Unsent(10 * MIB, metrics)
    claim = unsent.claim()
    for size in (1 * MIB, 2 * MIB, 2 * MIB, 5 * MIB):
        claim.grow(size)
        assert counted(metrics) == size
    claim.settle(3 * MIB)
    assert counted(metrics) == 3 * MIB
    del claim
    assert counted(metrics) == 0


def test_small_answers_are_not_counted_and_never_refused(metrics: Metrics) -> None:
    unsent = Unsent(MIB, metrics)
    full = unsent.claim()
    full.grow(MIB)
    small = unsent.claim()
    small.grow(LARGE_BYTES - 1)
    small.settle(LARGE_BYTES - 1)
    assert counted(metrics) == MIB
    with pytest.raises(Overloaded):
        small.grow(LARGE_BYTES)


def test_what_does_not_fit_is_refused_takes_nothing_and_fits_later(metrics: Metrics) -> None:
    unsent = Unsent(10 * MIB, metrics)
    first, second = unsent.claim(), unsent.claim()
    first.grow(6 * MIB)
    second.grow(4 * MIB)
    with pytest.raises(Overloaded) as refused:
        second.grow(4 * MIB + 1)
    assert refused.value.code == "unsent_full"
    assert refused.value.retry_after_seconds
    assert counted(metrics) == 10 * MIB
    first.settle(0)
    second.grow(9 * MIB)
    assert counted(metrics) == 9 * MIB
    assert metrics.registry.get_sample_value("bi_unsent_refusals_total") == 1


def test_one_alone_is_never_refused(metrics: Metrics) -> None:
    claim = Unsent(MIB, metrics).claim()
    claim.grow(3 * MIB)  # the rows were within the limit, their frame made it larger
    assert counted(metrics) == 3 * MIB


def test_the_same_answer_is_held_once(metrics: Metrics) -> None:
    unsent = Unsent(10 * MIB, metrics)
    claim = unsent.claim()
    claim.grow(4 * MIB)
    first = unsent.hold("ana", '"a"', 4 * MIB, lambda: b"x" * 4 * MIB, claim)
    del claim
    others = [unsent.hold(f"{n % 5}", '"a"', 4 * MIB, lambda: b"x" * 4 * MIB, None) for n in range(20)]
    assert all(other.body is first.body for other in others)
    assert counted(metrics) == 4 * MIB
    del first
    assert counted(metrics) == 4 * MIB
    others.clear()
    assert counted(metrics) == 0


def test_one_client_is_sent_half_of_the_budget_and_an_answer_twice_for_the_price_of_one(metrics: Metrics) -> None:
    unsent = Unsent(10 * MIB, metrics)

    def hold(client: str, etag: str, size: int) -> Held:
        return unsent.hold(client, etag, size, lambda: bytes(size), None)

    ana = [hold("ana", "a", 2 * MIB), hold("ana", "b", 3 * MIB)]
    ana.append(hold("ana", "b", 3 * MIB))
    with pytest.raises(Overloaded, match="you have not read") as refused:
        hold("ana", "c", MIB)
    assert refused.value.code == "unsent_full"
    assert metrics.registry.get_sample_value("bi_unsent_refusals_total") == 1
    bob = [hold("bob", "d", 2 * MIB), hold("bob", "b", 3 * MIB)]
    assert counted(metrics) == 7 * MIB
    ana.pop(0)
    ana.append(hold("ana", "c", MIB))
    del refused, ana, bob
    assert counted(metrics) == 0
    assert unsent._shares == {}


def test_one_answer_is_sent_to_a_client_however_large_it_is(metrics: Metrics) -> None:
    unsent = Unsent(10 * MIB, metrics)
    held = unsent.hold("ana", "a", 9 * MIB, lambda: bytes(9 * MIB), None)
    with pytest.raises(Overloaded):
        unsent.hold("ana", "b", LARGE_BYTES, lambda: bytes(LARGE_BYTES), None)
    assert counted(metrics) == len(held.body)


def test_what_a_client_could_not_be_sent_is_not_made_for_it(metrics: Metrics) -> None:
    unsent = Unsent(10 * MIB, metrics)
    held = unsent.hold("ana", "a", 4 * MIB, lambda: bytes(4 * MIB), None)
    anas, bobs = unsent.claim("ana"), unsent.claim("bob")
    anas.grow(MIB)
    with pytest.raises(Overloaded, match="you have not read"):
        anas.grow(MIB + 1)
    bobs.grow(5 * MIB)
    assert counted(metrics) == 10 * MIB
    del held
    bobs.settle(0)
    anas.grow(9 * MIB)


def test_what_the_budget_refuses_is_of_nobodys_share(metrics: Metrics) -> None:
    unsent = Unsent(10 * MIB, metrics)
    full = unsent.claim()
    full.grow(9 * MIB)
    with pytest.raises(Overloaded, match="clients have not read"):
        unsent.hold("ana", "a", 2 * MIB, lambda: bytes(2 * MIB), None)
    full.settle(0)
    assert unsent._shares == {}


def test_threads_that_take_and_give_back_at_once_leave_nothing_behind(metrics: Metrics) -> None:
    unsent = Unsent(8 * MIB, metrics)
    seen: list[float] = []

    def work(number: int) -> None:
        for size in range(1, 100):
            claim = unsent.claim()
            try:
                claim.grow(LARGE_BYTES + size * number)
                claim.grow(2 * LARGE_BYTES + size * number)
            except Overloaded:
                pass
            seen.append(counted(metrics))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(1, 33)))
    assert 0 < max(seen) <= 8 * MIB
    assert counted(metrics) == 0


def test_a_budget_that_holds_no_result_is_refused_with_what_to_change() -> None:
    with pytest.raises(ConfigurationError, match=r"BI_UNSENT_MAX_BYTES.*BI_MAX_RESULT_BYTES"):
        load_settings(unsent_max_bytes=MIB, max_result_bytes=2 * MIB)
    assert load_settings(max_result_bytes=2**50).effective_unsent_max_bytes == 2**50


class _Answers:
    """Answers with so many bytes, and counts the connections cut."""

    def __init__(self, size: int) -> None:
        self.size, self.cuts = size, 0

    async def __call__(
        self, scope: dict[str, Any], receive: object, send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        length = [(b"content-length", b"%d" % self.size)]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": b"x" * self.size})

    def refused(self, status: int) -> None:
        raise AssertionError(status)

    def cut(self) -> None:
        self.cuts += 1


IDLE_SECONDS = 1


@contextlib.contextmanager
def answering(size: int, send_timeout_seconds: float) -> Iterator[tuple[_Answers, uvicorn.Server, int]]:
    """A server that closes idle connections soon, and its port."""
    app, port = _Answers(size), free_port()
    config = uvicorn.Config(
        app,
        port=port,
        http=impatient(send_timeout_seconds),
        loop="uvloop",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", port)) as listener:
        keep_little_in_the_kernel([listener])
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
        thread.start()
        try:
            yield app, server, port
        finally:
            server.should_exit = True
            thread.join(20)


# 170,000 bytes: what the two systems do not hold is too little for the transport to say that nobody reads.
@pytest.mark.parametrize(("size", "cuts"), [(1000, 0), (170_000, 1)])
def test_an_idle_connection_is_closed_and_one_with_an_unread_answer_cut_off(size: int, cuts: int) -> None:
    with answering(size, 1.0) as (app, server, port), connect("127.0.0.1", port) as connection:
        connection.sendall(get("/"))
        wait_until(lambda: server.server_state.total_requests == 1)
        wait_until(lambda: not server.server_state.connections, what="the connection to end")
        assert app.cuts == cuts


@pytest.mark.parametrize("when_idle", [False, True])
def test_the_first_byte_of_another_request_does_not_end_the_watch_over_an_unread_answer(when_idle: bool) -> None:
    with answering(170_000, 1.0) as (app, server, port), connect("127.0.0.1", port) as connection:
        connection.sendall(get("/"))
        wait_until(lambda: server.server_state.total_requests == 1)
        (protocol,) = server.server_state.connections
        wait_until(lambda: protocol._is_idle or not when_idle, what="its time to be over")
        connection.sendall(b"G")
        wait_until(lambda: not server.server_state.connections, what="the connection to end")
        assert app.cuts == 1


def test_an_answer_that_cannot_be_written_keeps_nobody_else_s_back() -> None:
    class Transport:
        """A connection that may have no memory."""

        def __init__(self, *, fails: bool) -> None:
            self.fails, self.written, self.is_aborted = fails, b"", False

        def is_closing(self) -> bool:
            return self.is_aborted

        def write(self, data: bytes) -> None:
            if self.fails:
                raise MemoryError
            self.written += data

        def abort(self) -> None:
            self.is_aborted = True

    async def story() -> None:
        first, poor, last = Transport(fails=False), Transport(fails=True), Transport(fails=False)
        outbox = Outbox()
        for transport in (first, poor, last):
            outbox.put(cast(Any, transport), b"answer")
        outbox.flush()
        assert (first.written, poor.is_aborted, last.written) == (b"answer", True, b"answer")

    asyncio.run(story())


def test_an_idle_connection_whose_answer_is_read_slowly_ends_when_it_is_read() -> None:
    size, send_timeout_seconds = 190_000, 3.0
    with answering(size, send_timeout_seconds) as (app, server, port), connect("127.0.0.1", port) as connection:
        connection.sendall(get("/"))
        received = b""
        # Longer than it may be idle and then stand still; meanwhile the transport has something to write all the time.
        until = time.monotonic() + IDLE_SECONDS + send_timeout_seconds + 0.5
        while time.monotonic() < until:
            received += connection.recv(1000)
            time.sleep(0.1)
        assert len(received) < 50_000, "that was not slow"
        while more := connection.recv(65536):
            received += more
        assert received.partition(b"\r\n\r\n")[2] == b"x" * size
        wait_until(lambda: not server.server_state.connections, what="the connection to end")
        assert app.cuts == 0


def test_who_asks_again_while_the_last_answer_is_still_being_read_is_answered() -> None:
    with answering(170_000, 3.0) as (app, server, port), connect("127.0.0.1", port) as connection:
        connection.sendall(get("/"))
        wait_until(lambda: server.server_state.total_requests == 1)
        (protocol,) = server.server_state.connections
        wait_until(lambda: protocol._is_idle, what="its time to be over")
        connection.sendall(get("/", "Connection: close"))
        received = b""
        while more := connection.recv(65536):
            received += more
        assert received.count(b"HTTP/1.1 200 OK") == 2 and received.count(b"x") == 2 * 170_000
        assert app.cuts == 0
