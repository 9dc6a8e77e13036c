"""Answers at hand are given without the application: the same answers, counted, limited and logged as all others are."""

from __future__ import annotations

import re
import signal
import socket
import struct
from collections.abc import Callable
from typing import Any

from bi_query.unsent import LARGE_BYTES

from tests.support.service import Service, wait_until

NAMED = "/api/v1/queries/{name}"
SHOPS = b"GET /api/v1/queries/shops HTTP/1.1\r\nhost: x\r\n\r\n"
# What is of the moment, or of one connection.
PASSING = {"age", "date", "x-request-id", "connection", "cache-control"}


def get(target: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "host: x", *headers, "", ""]).encode()


class Connection:
    """One keep-alive connection, read answer by answer."""

    def __init__(self, service: Service) -> None:
        self.socket = socket.create_connection(("127.0.0.1", service.port), 30)
        self._stream = self.socket.makefile("rb")

    def ask(self, *requests: bytes) -> list[tuple[int, dict[str, str], bytes]]:
        """Send all at once; read as many answers."""
        self.socket.sendall(b"".join(requests))
        return [self.answer() for _ in requests]

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        status = int(self._stream.readline().split()[1])
        headers: dict[str, str] = {}
        while line := self._stream.readline().strip():
            name, _, value = line.decode().partition(": ")
            assert name not in headers, f"{name} twice"
            headers[name] = value
        return status, headers, self._stream.read(int(headers.get("content-length", 0)))

    def close(self) -> None:
        self._stream.close()
        self.socket.close()

    def is_closed(self) -> bool:
        return self._stream.read(1) == b""


def test_who_says_at_once_that_it_asks_nothing_more_gets_its_answers(serve: Callable[..., Service]) -> None:
    service = serve()
    service.query("shops")
    for _ in range(50):
        connection = Connection(service)
        connection.socket.sendall(SHOPS * 3)
        connection.socket.shutdown(socket.SHUT_WR)
        assert [connection.answer()[0] for _ in range(3)] == [200, 200, 200]
        connection.close()


def test_the_short_way_and_the_long_give_the_same_answer(serve: Callable[..., Service]) -> None:
    service = serve()
    service.query("shops")
    [short] = Connection(service).ask(SHOPS)
    # A connection that is to be closed takes the way through the application.
    [long] = Connection(service).ask(get("/api/v1/queries/shops", "connection: close"))
    assert (short[0], short[2]) == (long[0], long[2]) == (200, short[2])
    assert short[1]["x-cache"] == long[1]["x-cache"] == "hit"
    assert "connection" not in short[1]
    assert long[1]["connection"] == "close"
    # Both are one request off the same quota.
    assert int(short[1].pop("ratelimit-remaining")) == int(long[1].pop("ratelimit-remaining")) + 1
    assert {name: short[1][name] for name in short[1].keys() - PASSING} == {
        name: long[1][name] for name in long[1].keys() - PASSING
    }
    assert short[1].keys() == long[1].keys() - {"connection"}


def test_every_way_counts_a_request_once(serve: Callable[..., Service]) -> None:
    service = serve(rate_limit="5/hour")
    hit, miss, bad = SHOPS, get("/api/v1/queries/shops?limit=7"), get("/api/v1/queries/shops?limit=no")
    answers = Connection(service).ask(hit, hit, miss, bad, get("/api/v1/queries/nothing"), hit, hit)
    assert [status for status, _, _ in answers] == [200, 200, 200, 400, 404, 429, 429]
    assert [headers["ratelimit-remaining"] for _, headers, _ in answers] == ["4", "3", "2", "1", "0", "0", "0"]
    counted = {
        status: service.metric("http_requests_total", endpoint=NAMED, status=status)
        for status in ("200", "400", "404", "429")
    }
    assert counted == {"200": 3, "400": 1, "404": 1, "429": 2}
    assert service.metric("http_request_duration_seconds_count", endpoint=NAMED) == 7
    assert service.metric("bi_rate_limit_rejections_total", endpoint=NAMED) == 2
    assert service.metric("bi_cache_requests_total", query="shops", result="hit") == 1
    assert service.metric("http_requests_in_progress") == 1  # this one
    wait_until(lambda: len(lines_of(service)) >= 7, what="seven log lines")
    assert [line["status"] for line in lines_of(service)] == [200, 200, 200, 400, 404, 429, 429]
    ids = [headers["x-request-id"] for _, headers, _ in answers]
    assert [line["request_id"] for line in lines_of(service)] == ids
    assert len(set(ids)) == 7


def lines_of(service: Service) -> list[dict[str, Any]]:
    return [line for line in service.log_lines() if line.get("endpoint") == NAMED]


def test_pipelined_requests_are_answered_in_their_order(serve: Callable[..., Service]) -> None:
    """A slow one, then hundreds of hits behind it, which must wait for their turn."""
    service = serve()
    service.query("shops")
    slow = get("/api/v1/queries/slow?size=10", "x-request-id: slow")
    hits = [get("/api/v1/queries/shops", f"x-request-id: hit-{number}") for number in range(600)]
    answers = Connection(service).ask(slow, *hits)
    assert [headers["x-request-id"] for _, headers, _ in answers] == ["slow", *(f"hit-{n}" for n in range(600))]
    assert {status for status, _, _ in answers} == {200}
    assert len({body for _, _, body in answers[1:]}) == 1


def test_what_ends_a_connection_comes_after_the_answers_before_it(serve: Callable[..., Service]) -> None:
    service = serve()
    service.query("shops")
    connection = Connection(service)
    answers = connection.ask(SHOPS, SHOPS, b"no HTTP\r\n\r\n")
    assert [status for status, _, _ in answers] == [200, 200, 400]
    assert connection.is_closed()


def test_of_many_who_ask_in_the_same_moment_each_has_its_answer_whoever_leaves(serve: Callable[..., Service]) -> None:
    service = serve()
    service.query("shops")
    connections = [Connection(service) for _ in range(60)]
    at_once = struct.pack("ii", 1, 0)
    for turn in range(20):
        # While the service is held, all of it arrives: it finds everything in one turn of its event loop.
        service.signal(signal.SIGSTOP)
        leaving = [Connection(service) for _ in range(20)]
        for number, connection in enumerate([*connections, *leaving]):
            connection.socket.sendall(get("/api/v1/queries/shops", f"x-request-id: r-{turn}-{number}"))
        for connection in leaving:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            connection.close()
        service.signal(signal.SIGCONT)
        for number, connection in enumerate(connections):
            status, headers, _ = connection.answer()
            assert (status, headers["x-request-id"]) == (200, f"r-{turn}-{number}")
    assert "Traceback" not in service.errors()


def test_a_client_that_holds_the_answer_is_told_so_and_its_connection_goes_on(serve: Callable[..., Service]) -> None:
    service = serve()
    etag = service.query("shops").headers["etag"]
    connection = Connection(service)
    known = get("/api/v1/queries/shops", f"if-none-match: {etag}")
    (status, headers, body), (after, _, _) = connection.ask(known, SHOPS)
    assert (status, body, after) == (304, b"", 200)
    assert headers["etag"] == etag
    assert "content-length" not in headers


def test_old_clients_are_answered_and_let_go(serve: Callable[..., Service]) -> None:
    service = serve()
    service.query("shops")
    connection = Connection(service)
    [(status, headers, _)] = connection.ask(b"GET /api/v1/queries/shops HTTP/1.0\r\nhost: x\r\n\r\n")
    assert (status, headers["x-cache"]) == (200, "hit")
    assert connection.is_closed()


def test_a_body_sent_with_a_get_is_not_taken_for_a_request(serve: Callable[..., Service]) -> None:
    service = serve()
    service.query("shops")
    with_body = get("/api/v1/queries/shops", f"content-length: {len(SHOPS)}") + SHOPS
    first, second = Connection(service).ask(with_body, get("/api/v1/queries/shops?limit=2"))
    assert (first[0], second[0]) == (200, 200)
    assert service.metric("http_requests_total", endpoint=NAMED, status="200") == 3


def test_large_answers_and_heads_take_the_long_way(serve: Callable[..., Service], small: Any) -> None:
    (small.catalogue / "queries" / "large.sql").write_text(
        "/*---\ntitle: Large\nfreshness: steady\n---*/\nselect i, md5(i::varchar) as text from range(20000) t(i)\n"
    )
    service = serve()
    service.query("large")
    large = get("/api/v1/queries/large")
    first, second = Connection(service).ask(large, large)
    assert first[2] == second[2]
    assert len(first[2]) > LARGE_BYTES
    assert service.metric("bi_cache_requests_total", query="large", result="hit") == 2
    padding = "x-padding: " + "x" * 40_000
    [(status, _, body)] = Connection(service).ask(get("/api/v1/queries/shops", padding))
    assert status == 431
    assert b"headers_too_large" in body


def test_who_does_not_read_is_not_written_to_for_ever(serve: Callable[..., Service]) -> None:
    """Thousands of hits in one go by a client that reads nothing: others are served, and its own come when it reads."""
    service = serve()
    body = service.query("shops", None, limit=100).content
    connection = Connection(service)
    request = get("/api/v1/queries/shops?limit=100")
    connection.socket.setblocking(False)
    sent = 0
    try:
        while sent < 50_000_000:
            sent += connection.socket.send(request * 100)
    except BlockingIOError:
        pass
    assert service.query("shops").status_code == 200
    taken = service.metric("http_requests_total", endpoint=NAMED, status="200")
    assert taken * len(request) < sent, "every request was answered into a buffer that nobody empties"
    connection.socket.setblocking(True)
    answers = [connection.answer() for _ in range(2000)]
    assert {answer[2] for answer in answers} == {body}
    assert re.fullmatch(r"\d+", answers[-1][1]["ratelimit-remaining"])
