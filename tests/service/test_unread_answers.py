"""Clients that ask for large answers and do not read them, or read them slowly."""

from __future__ import annotations

import http.client
import re
import resource
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from bi_query.access import Role

from tests.support.keys import made_keys
from tests.support.readers import asked, connect, get, large_sql, post_sql
from tests.support.service import Service, wait_until
from tests.support.small import Small

MIB = 2**20
CLIENTS = 200
BUDGET_BYTES = 48 * MIB
BIG = """/*---
title: Large
freshness: steady
---*/
select i, repeat('the same again, ', 40) as text from range(100000) r(i)
"""


def unsent(service: Service) -> float:
    return service.metric("bi_unsent_bytes")


def cuts(service: Service) -> float:
    return service.metric("bi_send_cuts_total")


def all_answered(service: Service) -> bool:
    """Whether the engine is at rest."""
    return not (service.metric("bi_engine_running_queries") or service.metric("bi_engine_waiting_queries"))


def memory(service: Service, name: str) -> int:
    text = Path(f"/proc/{service.process.pid}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.M)
    assert found
    return int(found[1]) * 1024


def answer_of(connection: socket.socket) -> http.client.HTTPResponse:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer


class Watcher(threading.Thread):
    """Asks small questions and looks at the budget and the memory, until told to stop."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self.service, self.stop = service, threading.Event()
        self.statuses: list[int] = []
        self.most_unsent = 0.0
        self.most_memory = 0

    def run(self) -> None:
        with httpx.Client(base_url=self.service.url, timeout=60) as client:
            while not self.stop.is_set():
                self.statuses.append(
                    client.get(f"/api/v1/queries/shops?limit={1 + len(self.statuses) % 40}").status_code
                )
                found = re.search(r"^bi_unsent_bytes (\S+)$", client.get("/metrics").text, re.M)
                assert found
                self.most_unsent = max(self.most_unsent, float(found[1]))
                self.most_memory = max(self.most_memory, memory(self.service, "VmRSS"))


def test_two_hundred_who_never_read_fill_the_budget_and_nothing_else(serve: Callable[..., Service]) -> None:
    service = serve(
        unsent_max_bytes=BUDGET_BYTES,
        max_result_bytes=32 * MIB,
        cache_memory_bytes=16 * MIB,
        engine_memory_bytes=128 * MIB,
        max_connections=1000,
        queue_timeout_seconds=300,
        send_timeout_seconds=10,
        trusted_proxies="127.0.0.1/32",
    )
    requests = [post_sql(large_sql(n), {"X-Forwarded-For": f"192.0.2.{n}"}) for n in range(CLIENTS)]
    assert service.sql(large_sql(-1)).status_code == 200
    before = memory(service, "VmRSS")
    watcher = Watcher(service)
    watcher.start()
    with asked("127.0.0.1", service.port, requests) as connections:
        wait_until(lambda: service.metric("bi_unsent_refusals_total") > 0, 60, what="the budget to be full")
        wait_until(lambda: service.metric("bi_engine_wait_seconds_count") > CLIENTS, 120, what="everybody's turn")
        wait_until(lambda: all_answered(service), 60, what="everybody to be answered")
        wait_until(lambda: cuts(service) > 0 and unsent(service) == 0, 60, what="those who do not read to be cut off")
        watcher.stop.set()
        watcher.join(60)
        statuses = set()
        for connection in connections:
            try:
                statuses.add(answer_of(connection).status)
            except (ConnectionResetError, http.client.BadStatusLine):
                statuses.add(0)
        assert statuses <= {0, 200, 503}
    assert set(watcher.statuses) == {200}
    assert len(watcher.statuses) >= 10
    assert BUDGET_BYTES / 2 < watcher.most_unsent <= BUDGET_BYTES
    # All their answers would be 1.6 GB.
    assert watcher.most_memory - before < 6 * BUDGET_BYTES, (
        f"{watcher.most_memory / MIB:.0f} MiB after {before / MIB:.0f}"
    )
    assert service.metric("http_requests_total", status="500") == 0
    assert service.metric("http_requests_total", status="503") == service.metric("bi_unsent_refusals_total")
    assert service.metric("bi_engine_queries_total", outcome="refused") > 0
    assert service.sql(large_sql(-2)).status_code == 200, "there is room again"
    wait_until(lambda: service.metric("http_requests_in_progress") <= 1, what="nobody to be answered any more")


def test_what_does_not_fit_says_when_to_ask_again_and_small_answers_do_not_notice(
    serve: Callable[..., Service],
) -> None:
    service = serve(unsent_max_bytes=10 * MIB, max_result_bytes=9 * MIB)
    with asked("127.0.0.1", service.port, [post_sql(large_sql(1))]):
        wait_until(lambda: unsent(service) > 7 * MIB and all_answered(service), what="the answer to wait to be read")
        refused = service.sql(large_sql(2))
        assert (refused.status_code, refused.json()["code"]) == (503, "unsent_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert service.sql("select 42 as n").json()["rows"] == [[42]]
        assert service.sql("select i from range(20000) r(i)").json()["row_count"] == 20000
    wait_until(lambda: unsent(service) == 0, what="the budget to be given back once its holder is gone")
    assert service.sql(large_sql(2)).status_code == 200


def test_one_client_that_asks_and_never_reads_leaves_room_for_a_large_answer_of_another(
    small: Small, serve: Callable[..., Service]
) -> None:
    file = small.root / "keys.json"
    ana, bob = ({"X-API-Key": key} for key in made_keys(file, ana=Role.ANALYST, bob=Role.ANALYST).values())
    service = serve(keys_file=file, unsent_max_bytes=34 * MIB, max_result_bytes=9 * MIB, queue_timeout_seconds=60)
    with asked("127.0.0.1", service.port, [post_sql(large_sql(n), ana) for n in range(12)]):
        # Some already while they were made: what is refused is counted until it is let go of.
        wait_until(
            lambda: service.metric("bi_unsent_refusals_total") == 10, 60, what="two to be sent, the rest refused"
        )
        wait_until(lambda: 15 * MIB < unsent(service) < 17 * MIB, what="what was refused to be let go of")
        other = service.client.post("/api/v1/query", json={"sql": large_sql(20)}, headers=bob)
        assert (other.status_code, other.json()["row_count"]) == (200, 30_000)
        refused = service.client.post("/api/v1/query", json={"sql": large_sql(21)}, headers=ana)
        assert (refused.status_code, refused.json()["code"]) == (503, "unsent_full")
        assert "you have not read" in refused.json()["detail"]
        assert service.client.post("/api/v1/query", json={"sql": "select 1 as n"}, headers=ana).status_code == 200
    wait_until(lambda: unsent(service) == 0, what="the budget to be given back")
    assert service.client.post("/api/v1/query", json={"sql": large_sql(21)}, headers=ana).status_code == 200


def test_the_same_answer_is_counted_and_held_once_for_all_who_are_sent_it(serve: Callable[..., Service]) -> None:
    service = serve(unsent_max_bytes=20 * MIB, max_result_bytes=16 * MIB)
    size = len(service.sql(large_sql(1)).content)
    before = memory(service, "VmRSS")
    with asked("127.0.0.1", service.port, [post_sql(large_sql(1))] * 50):
        wait_until(lambda: service.metric("bi_cache_requests_total", result="hit") == 50, what="all to be answered")
        assert unsent(service) == size
        assert memory(service, "VmRSS") - before < 10 * size
        assert service.metric("bi_unsent_refusals_total") == 0
    wait_until(lambda: unsent(service) == 0)


@pytest.mark.parametrize("fmt", ["json", "csv", "arrow", "parquet"])
def test_the_budget_is_given_back_whole_after_every_format_and_every_refusal(
    serve: Callable[..., Service], fmt: str
) -> None:
    service = serve(unsent_max_bytes=12 * MIB, max_result_bytes=6 * MIB)
    assert service.sql(large_sql(1), fmt=fmt).status_code == 200  # cut at 6 MiB, all but Parquet
    # Fails after its first rows were counted: a text that is no number, far behind.
    number = "(case when i = 19000 then 'x' else '1' end)::int"
    failed = service.sql(f"select repeat(md5(i::varchar), 8) as text, {number} as n from range(20000) r(i)", fmt=fmt)
    assert (failed.status_code, failed.json()["code"]) == (422, "sql_error")
    assert service.sql(large_sql(1), None, fmt, if_none_match="*").status_code == 304
    wait_until(lambda: unsent(service) == 0)


def test_a_slow_reader_who_goes_on_reading_gets_every_byte(serve: Callable[..., Service]) -> None:
    # So slow that the transport has nothing to say for longer than the time-out: only the system knows that it reads.
    timeout_seconds = 5.0
    service = serve(send_timeout_seconds=timeout_seconds)
    right = service.sql(large_sql(1, 4000)).content
    assert len(right) > 1_000_000
    with connect("127.0.0.1", service.port) as connection:
        connection.sendall(post_sql(large_sql(1, 4000)))
        received = b""
        until = time.monotonic() + 3 * timeout_seconds
        while time.monotonic() < until:
            received += connection.recv(1000)
            time.sleep(0.1)
        assert len(received) < 200_000, "that was not slow"
        while not received.endswith(right[-100:]):
            more = connection.recv(65536)
            assert more, "cut off"
            received += more
    assert received.partition(b"\r\n\r\n")[2] == right
    assert cuts(service) == 0


def test_small_answers_that_nobody_reads_are_cut_off_too(serve: Callable[..., Service]) -> None:
    service = serve(send_timeout_seconds=1.0)
    assert service.query("shops").status_code == 200
    with asked("127.0.0.1", service.port, [get("/api/v1/queries/shops") * 5000]) as [connection]:
        wait_until(lambda: cuts(service) == 1, what="the connection to be cut")
        with pytest.raises(ConnectionResetError):
            while connection.recv(65536):
                pass
    wait_until(lambda: service.metric("http_requests_in_progress") <= 1)


@pytest.mark.parametrize(("rows", "left"), [(600, 170_000), (30_000, 150_000)])
def test_the_rest_of_a_last_answer_that_nobody_reads_is_cut_off(
    serve: Callable[..., Service], rows: int, left: int
) -> None:
    # More is left than the two systems hold, and too little for the transport to say that nobody reads.
    service = serve(send_timeout_seconds=1.0)
    size = len(service.sql(large_sql(1, rows)).content)
    with asked("127.0.0.1", service.port, [post_sql(large_sql(1, rows), {"Connection": "close"})]) as [connection]:
        received = len(connection.recv(1))
        while received < size - left:
            more = connection.recv(min(65536, size - left - received))
            assert more, "cut off already"
            received += len(more)
        assert_is_cut_off(service, connection)


def test_the_rest_of_an_answer_whose_client_asks_nothing_more_and_reads_nothing_is_cut_off(
    serve: Callable[..., Service],
) -> None:
    service = serve(send_timeout_seconds=1.0)
    with asked("127.0.0.1", service.port, [post_sql(large_sql(1, 600))]) as [connection]:
        assert connection.recv(1) == b"H"
        connection.shutdown(socket.SHUT_WR)
        assert_is_cut_off(service, connection)


def assert_is_cut_off(service: Service, connection: socket.socket) -> None:
    wait_until(lambda: cuts(service) == 1, what="the connection to be cut")
    with pytest.raises(ConnectionResetError):
        while connection.recv(65536):
            pass


def test_a_last_answer_is_read_slowly_to_its_end(serve: Callable[..., Service]) -> None:
    service = serve(send_timeout_seconds=2.0)
    right = service.sql(large_sql(1, 930)).content
    with asked("127.0.0.1", service.port, [post_sql(large_sql(1, 930), {"Connection": "close"})]) as [connection]:
        received = b""
        until = time.monotonic() + 6
        while time.monotonic() < until:
            received += connection.recv(1500)
            time.sleep(0.1)
        assert len(received) < 100_000, "that was not slow"
        while more := connection.recv(65536):
            received += more
    assert received.partition(b"\r\n\r\n")[2] == right
    assert cuts(service) == 0


def test_who_is_cut_off_is_counted_as_gone(serve: Callable[..., Service]) -> None:
    service = serve(send_timeout_seconds=0.5)
    with asked("127.0.0.1", service.port, [post_sql(large_sql(1))]):
        wait_until(lambda: cuts(service) == 1, what="the connection to be cut")
        wait_until(lambda: service.metric("http_requests_total", status="499") == 1)
    wait_until(lambda: [line for line in service.log_lines() if line["status"] == 499], what="its line in the log")
    assert unsent(service) == 0


def test_no_memory_for_an_answer_is_503_and_small_ones_go_on(small: Small, serve: Callable[..., Service]) -> None:
    (small.catalogue / "queries" / "big.sql").write_text(BIG)
    service = serve(max_running_queries=1)
    sql = "select i, repeat('and the same again, ', 32) as text from range(100000) r(i)"
    first = service.query("big"), service.sql(sql)
    assert [answer.status_code for answer in first] == [200, 200]
    assert min(len(answer.content) for answer in first) > 60 * MIB
    # What is stored of them is small: a second answer needs its 60 MB anew, and there is no such room now.
    wait_until(lambda: service.metric("bi_unsent_bytes") == 0, what="the last answer to be let go of")
    room = memory(service, "VmData") + 20 * MIB
    resource.prlimit(service.process.pid, resource.RLIMIT_DATA, (room, room))
    for answer in service.query("big"), service.sql(sql):  # from the hot path, and through the framework
        assert (answer.status_code, answer.json()["code"]) == (503, "memory_full")
        assert int(answer.headers["retry-after"]) >= 1
    assert service.query("shops").status_code == 200
    assert service.metric("http_requests_total", status="500") == 0
