"""The engine's limits as clients meet them, on a real service."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import orjson
import pytest

from tests.support.service import Service, wait_until
from tests.support.small import Small

ENDLESS = "select count(*) as n from range(10000000) a(i), range(1000000) b(j) where (i + j) % 7 = {}"


def ask(service: Service, sql: str) -> httpx.Response:
    return httpx.post(f"{service.url}/api/v1/query", json={"sql": sql}, timeout=60)


def hang(service: Service, sql: str) -> socket.socket:
    """Send a query and do not read the answer; closing the socket is going away."""
    body = orjson.dumps({"sql": sql})
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=30)
    connection.sendall(
        b"POST /api/v1/query HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    return connection


def running(service: Service) -> float:
    return service.metric("bi_engine_running_queries")


def waiting(service: Service) -> float:
    return service.metric("bi_engine_waiting_queries")


def cpu_ticks(service: Service) -> int:
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def cpu_is_idle(service: Service) -> bool:
    before = cpu_ticks(service)
    threading.Event().wait(0.3)
    return cpu_ticks(service) - before <= 5  # of the 30 or 60 that a running query would use


def test_what_does_not_fit_is_refused_at_once_and_a_departure_makes_room(serve: Callable[..., Service]) -> None:
    service = serve(max_running_queries=1, max_connections=3)
    clients = [hang(service, ENDLESS.format(n)) for n in range(3)]
    wait_until(lambda: running(service) == 1 and waiting(service) == 2)
    refused = ask(service, "select 'one too many'")
    assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert service.metric("bi_engine_rejections_total", reason="queue_full") == 1
    clients[2].close()  # one that waits
    wait_until(lambda: waiting(service) == 1)
    clients[0].close()  # the one that runs, as nothing says in which order they were admitted
    clients[1].close()
    wait_until(lambda: running(service) == waiting(service) == 0)
    assert service.metric("bi_engine_queries_total", query="ad_hoc", outcome="cancelled") == 3
    wait_until(lambda: cpu_is_idle(service), what="the queries to have really stopped")
    assert ask(service, "select 42 as n").json()["rows"] == [[42]]


def test_waiting_too_long_is_503_with_retry_after(serve: Callable[..., Service]) -> None:
    service = serve(max_running_queries=1, queue_timeout_seconds=0.3)
    with hang(service, ENDLESS.format(1)):
        wait_until(lambda: running(service) == 1)
        refused = ask(service, "select 1")
        assert (refused.status_code, refused.json()["code"]) == (503, "queue_timeout")
        assert int(refused.headers["retry-after"]) >= 1


def test_a_query_that_runs_too_long_is_504_and_really_stops(serve: Callable[..., Service]) -> None:
    service = serve(query_timeout_seconds=0.5)
    answer = ask(service, ENDLESS.format(1))
    assert (answer.status_code, answer.json()["code"]) == (504, "query_timeout")
    assert running(service) == 0
    assert service.metric("bi_engine_queries_total", query="ad_hoc", outcome="timeout") == 1
    wait_until(lambda: cpu_is_idle(service), what="the query to have really stopped")


def test_health_answers_while_every_core_computes(serve: Callable[..., Service]) -> None:
    service = serve()
    with hang(service, ENDLESS.format(1)), hang(service, ENDLESS.format(2)):
        wait_until(lambda: running(service) == 2)
        for _ in range(20):
            assert service.get("/health/live").status_code == 200
        assert running(service) == 2, "all twenty were answered while the queries ran"


@pytest.mark.parametrize("fmt", ["json", "csv", "arrow", "parquet"])
def test_health_answers_while_a_large_result_is_encoded(serve: Callable[..., Service], fmt: str) -> None:
    service = serve()
    columns = ", ".join(f"hash(i + {n})::varchar as c{n}" for n in range(12))
    sql = f"select {columns} from range(100000) r(i)"
    answered = 0
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=service.url, timeout=60) as client:
        client.get("/health/live")
        large = pool.submit(service.sql, sql, fmt=fmt)
        while not large.done():
            answered += client.get("/health/live").status_code == 200
    assert large.result().status_code == 200
    assert large.result().headers["x-row-count"] == "100000"
    assert answered >= 2


def test_two_hundred_departures_leave_a_service_that_answers_rightly(serve: Callable[..., Service]) -> None:
    service = serve(max_connections=1000, queue_timeout_seconds=60)
    with ThreadPoolExecutor(4) as pool:

        def leave(number: int) -> None:
            connection = hang(service, ENDLESS.format(number))
            threading.Event().wait(0.002 * (number % 5))
            connection.close()

        departures = [pool.submit(leave, number) for number in range(200)]
        answers = [ask(service, f"select sum(i) + {n} as s from range(3000) r(i)") for n in range(40)]
        for departure in departures:
            departure.result()
    assert [int(answer.json()["rows"][0][0]) for answer in answers] == [4498500 + n for n in range(40)]
    wait_until(lambda: running(service) == waiting(service) == 0)
    wait_until(lambda: service.metric("http_requests_in_progress") <= 1)
    assert ask(service, "select 7 as n").json()["rows"] == [[7]]


def test_a_query_that_needs_too_much_memory_is_422_and_the_next_works(serve: Callable[..., Service]) -> None:
    service = serve(engine_memory_bytes=80 * 2**20, spill_max_bytes=2**20)
    refused = ask(service, "select len(list(i)) as n from range(40000000) r(i)")
    assert (refused.status_code, refused.json()["code"]) == (422, "query_too_large")
    assert ask(service, "select count(*) as n from sales").json()["rows"] == [[1000]]


def test_a_query_that_breaks_the_engine_costs_itself_only(small: Small, serve: Callable[..., Service]) -> None:
    # An internal error of DuckDB invalidates the whole instance. The guard refuses the functions known to do it, so the
    # query comes from the catalogue here.
    nested = "repeat('{\"a\":', 400) || '1' || repeat('}', 400)"
    (small.catalogue / "queries" / "breaking.sql").write_text(
        f"/*---\ntitle: Breaks the engine\nfreshness: never\n---*/\nselect json_group_structure(({nested})::json) as s\n"
    )
    service = serve(snapshot_poll_seconds=0.2)
    assert service.query("uncached").status_code == 200
    assert service.query("breaking").status_code == 500
    wait_until(lambda: service.query("uncached").status_code == 200, 20, what="the engine to be reopened")
    assert service.get("/health/ready").status_code == 200
