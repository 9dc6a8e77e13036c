"""Bad input: each gets its documented refusal, and the service is as ready and as quick after all of it as before."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.service.test_contract import assert_problem
from tests.support.service import Service, running, wait_until
from tests.support.small import make_small

TYPED = """/*---
title: One parameter of each type
freshness: never
parameters:
  n: {type: integer, default: 1, minimum: -5, maximum: 100}
  x: {type: number, default: 1, minimum: -1000, maximum: 1000}
  day: {type: date, default: 2024-01-01, minimum: 2017-01-01, maximum: 2030-12-31}
  flag: {type: boolean, default: false}
  text: {type: string, default: null, max_length: 20}
  choice: {type: string, default: a, choices: [a, b]}
---*/
select $n as n, $x as x, $day as day, $flag as flag, $text as text, $choice as choice
"""
REQUIRED = """/*---
title: A required parameter
freshness: never
parameters:
  n: {type: integer, minimum: 0, maximum: 9}
---*/
select $n as n
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service takes all of this module's input; at its end it must be as it was."""
    small = make_small(tmp_path_factory.mktemp("small"))
    (small.catalogue / "queries" / "typed.sql").write_text(TYPED)
    (small.catalogue / "queries" / "required.sql").write_text(REQUIRED)
    small.publish()
    with running(small.snapshots, catalogue_dir=small.catalogue) as running_service:
        yield running_service
        assert_unharmed(running_service)


def assert_unharmed(service: Service) -> None:
    """Ready, answering, and without an error to tell of."""
    assert service.process.poll() is None
    assert service.get("/health/ready").status_code == 200
    # Quick beside what a client would wait: no request of the tables above may still hold the loop or the engine.
    assert service.client.get("/api/v1/queries/shops", timeout=10).status_code == 200
    assert service.sql("SELECT 40 + 2 AS v").json()["rows"] == [[42]]
    lines = [json.loads(line) for line in service.errors().splitlines() if line.startswith("{")]
    assert [line for line in lines if line["level"] in ("error", "critical")] == []
    assert "Traceback" not in service.errors()
    for status in range(500, 600):
        assert service.metric("http_requests_total", status=str(status)) == 0, status
    assert service.metric("http_requests_in_progress") == 1  # this one
    assert service.metric("bi_engine_running_queries") == service.metric("bi_engine_waiting_queries") == 0


def ask(service: Service, target: str, method: str = "GET") -> httpx.Response:
    """Ask for exactly this target: httpx would escape what is wrong with it, and refuse a long one itself."""
    return service.client.request(method, "/", extensions={"target": target.encode("latin-1")})


# --- query strings ---


@pytest.mark.parametrize(
    ("query_string", "code"),
    [
        *[
            (f"n={value}", "bad_parameter")
            for value in ("", "x", "1.5", "1e3", "101", "-6", "0x1", "1_0", "NaN", "null")
        ],
        *[(f"n={value}", "bad_parameter") for value in ("+5", "%205", "5%20", "5%0A", "%00", "5%00", "9" * 5000)],
        *[(f"n={value}", "bad_parameter") for value in ("%D9%A5", "%EF%BC%95", "%C2%B2", "[5]", "5;6", "5%2C6")],
        *[
            (f"x={value}", "bad_parameter")
            for value in ("", "nan", "inf", "-Infinity", "1e999", "1,5", "1001", "%D9%A5")
        ],
        *[(f"day={value}", "bad_parameter") for value in ("", "2023-02-29", "2016-12-31", "2031-01-01", "2024-W01-1")],
        *[(f"day={value}", "bad_parameter") for value in ("20240101", "2024-01-01T00:00:00", "today", "infinity")],
        *[(f"flag={value}", "bad_parameter") for value in ("", "yes", "2", "truee", "None")],
        *[(f"text={value}", "bad_parameter") for value in ("x" * 21, "a%00b", "%F0%9F%A6%86" * 21)],
        *[(f"choice={value}", "bad_parameter") for value in ("", "c", "A", "a%20")],
        ("nope=1", "unknown_parameter"),
        ("N=1", "unknown_parameter"),
        ("n%20=1", "unknown_parameter"),
        ("=1", "unknown_parameter"),
        ("n[]=1", "unknown_parameter"),
        ("n%00=1", "unknown_parameter"),
        ("%F0%9F%A6%86=1", "unknown_parameter"),
        ("sql=SELECT%201", "unknown_parameter"),
        ("x" * 10_000 + "=1", "unknown_parameter"),
        ("n=1&n=2", "repeated_parameter"),
        ("n=1&n=1", "repeated_parameter"),
        ("n=1&%6E=1", "repeated_parameter"),
        ("format=json&format=csv", "repeated_parameter"),
        ("text=%", "bad_query_string"),
        ("text=%zz", "bad_query_string"),
        ("text=%e", "bad_query_string"),
        ("text=%ff", "bad_query_string"),
        ("text=%c0%80", "bad_query_string"),
        ("text=%ed%a0%80", "bad_query_string"),
        ("&".join(f"p{i}=1" for i in range(101)), "bad_query_string"),
        ("text=" + "x" * 16_384, "query_string_too_long"),
        ("text=" + "x" * 100_000, "query_string_too_long"),
    ],
)
def test_a_bad_query_string_is_a_400_that_says_why(service: Service, query_string: str, code: str) -> None:
    answer = ask(service, f"/api/v1/queries/typed?{query_string}")
    document = assert_problem(answer, 400, code)
    assert len(document["detail"]) < 500


@pytest.mark.parametrize(
    ("query_string", "name", "value"),
    [
        ("n=%2B5", "n", 5),
        ("n=-0", "n", 0),
        ("n=007", "n", 7),
        ("x=1e3", "x", 1000.0),
        ("x=-0", "x", 0.0),
        ("day=2024-02-29", "day", "2024-02-29"),
        ("flag=TRUE", "flag", True),
        ("text=", "text", ""),
        ("text=a+b%20c", "text", "a b c"),
        ("text=%F0%9F%A6%86", "text", "🦆"),
        ("text='; drop table sales", "text", "'; drop table sales"),
        ("choice=b", "choice", "b"),
        ("", "n", 1),
        ("&&", "n", 1),
    ],
)
def test_unusual_but_right_input_is_read_as_meant(service: Service, query_string: str, name: str, value: Any) -> None:
    document = service.get(f"/api/v1/queries/typed?{query_string}").json()
    names = [column["name"] for column in document["columns"]]
    assert document["rows"][0][names.index(name)] == value


def test_a_missing_required_parameter_is_named(service: Service) -> None:
    document = assert_problem(service.get("/api/v1/queries/required"), 400, "missing_parameter")
    assert document["parameter"] == "n"
    assert "0 to 9" in document["detail"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"params": {"format": "xml"}}, "unknown_format"),
        ({"params": {"format": ""}}, "unknown_format"),
        ({"params": {"format": "JSON"}}, "unknown_format"),
        ({"params": {"format": "x" * 5000}}, "unknown_format"),
        ({"headers": {"accept": "text/html"}}, "not_acceptable"),
        ({"headers": {"accept": "application/json;q=0"}}, "not_acceptable"),
        ({"headers": {"accept": "image/png," * 2000}}, "not_acceptable"),
    ],
)
def test_an_unknown_format_is_a_406(service: Service, options: Any, code: str) -> None:
    assert_problem(service.get("/api/v1/queries/typed", **options), 406, code)
    assert_problem(service.client.post("/api/v1/query", json={"sql": "SELECT 1"}, **options), 406, code)


@pytest.mark.parametrize(
    ("query_string", "status", "code"),
    [
        ("", 400, "bad_parameter"),
        ("query=shops&pattern=*", 400, "bad_parameter"),
        ("query=shops&query=quick", 400, "bad_parameter"),
        ("name=shops", 400, "bad_parameter"),
        ("pattern=", 400, "bad_parameter"),
        ("pattern=" + "x" * 501, 400, "bad_parameter"),
        ("pattern=" + "x" * 100_000, 400, "query_string_too_long"),
        ("pattern=%ff", 400, "bad_query_string"),
        ("query=", 404, "unknown_query"),
        ("query=nope", 404, "unknown_query"),
        ("query=shops*", 404, "unknown_query"),
        ("query=%00", 404, "unknown_query"),
    ],
)
def test_bad_invalidations_are_refused(service: Service, query_string: str, status: int, code: str) -> None:
    assert_problem(ask(service, f"/api/v1/cache?{query_string}", "DELETE"), status, code)


@pytest.mark.parametrize("pattern", ["[a-z]*", "shops/\\*", "(a+)+$", "*" * 500, "%00", "*a" * 249 + "b", "🦆?"])
def test_any_text_is_a_glob_that_takes_no_time(service: Service, pattern: str) -> None:
    # A label that a backtracking matcher would try in astronomically many ways.
    service.query("typed", text="a" * 20)
    service.sql("SELECT 'a'")
    service.query("shops", shop="a" * 20)
    answer = service.client.delete("/api/v1/cache", params={"pattern": pattern}, timeout=20)
    assert answer.status_code == 200


# --- bodies ---


def deep(depth: int) -> bytes:
    return b'{"sql": "SELECT 1", "params": {"a": ' + b"[" * depth + b"]" * depth + b"}}"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "bad_json"),
        (b" ", "bad_json"),
        (b"\x00", "bad_json"),
        (b"SELECT 1", "bad_json"),
        (b"{", "bad_json"),
        (b"{'sql': 'SELECT 1'}", "bad_json"),
        (b'{"sql": "SELECT 1",}', "bad_json"),
        (b'{"sql": "SELECT 1"} {}', "bad_json"),
        (b'\xef\xbb\xbf{"sql": "SELECT 1"}', "bad_json"),
        (b'{"sql": "SELECT \xff"}', "bad_json"),
        ('{"sql": "SELECT 1"}'.encode("utf-16"), "bad_json"),
        (b'{"sql": "SELECT 1", "params": {"a": NaN}}', "bad_json"),
        (b'{"sql": "SELECT 1", "params": {"a": -Infinity}}', "bad_json"),
        (b'{"sql": "SELECT 1", "params": {"a": ' + b"9" * 10_000 + b"}}", "bad_json"),
        (b'{"sql": "SELECT 1", "sql": "SELECT 2"}', "bad_json"),
        (b'{"sql": "SELECT $a", "params": {"a": 1, "a": 2}}', "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b'{"a":' * 100_000, "bad_json"),
        (deep(100_000), "bad_json"),
        (deep(100), "bad_body"),
        (b"null", "bad_body"),
        (b"[]", "bad_body"),
        (b'"SELECT 1"', "bad_body"),
        (b"{}", "bad_body"),
        (b'{"SQL": "SELECT 1"}', "bad_body"),
        *[
            (b'{"sql": ' + value + b"}", "bad_body")
            for value in (b"null", b"1", b"true", b"[]", b'["SELECT 1"]', b"{}")
        ],
        (b'{"sql": "SELECT 1", "format": "csv"}', "bad_body"),
        (b'{"sql": "SELECT 1", "\\ud800": 1}', "bad_body"),
        (b'{"sql": "SELECT \'\\ud800\'"}', "bad_body"),
        (b'{"sql": "SELECT \'a\\u0000b\'"}', "bad_body"),
        *[
            (b'{"sql": "SELECT 1", "params": ' + value + b"}", "bad_body")
            for value in (b"[]", b"0", b"false", b'""', b'"a"', b"[1]")
        ],
        *[
            (b'{"sql": "SELECT $a", "params": {"a": ' + value + b"}}", "bad_body")
            for value in (b"[]", b"{}", b"1e999", b"-1e999", b"18446744073709551616", b"-9223372036854775809")
        ],
        (b'{"sql": "SELECT $a", "params": {"a": "\\u0000"}}', "bad_body"),
        (b'{"sql": "SELECT $a", "params": {"a": "\\udfff"}}', "bad_body"),
        (b'{"sql": "SELECT $a", "params": {}}', "bad_parameters"),
        (b'{"sql": "SELECT $a"}', "bad_parameters"),
        (b'{"sql": "SELECT 1", "params": {"a": 1}}', "bad_parameters"),
        (b'{"sql": "SELECT $a", "params": {"a": 1, "\\ud800": 1}}', "bad_parameters"),
        (b'{"sql": "SELECT $a", "params": {"A": 1, "": 2}}', "bad_parameters"),
    ],
)
def test_a_bad_body_is_a_400_that_says_why(service: Service, body: bytes, code: str) -> None:
    answer = service.client.post("/api/v1/query", content=body, headers={"content-type": "application/json"})
    document = assert_problem(answer, 400, code)
    assert len(document["detail"]) < 500


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "text/json", "", "a" * 5000, "/"])
def test_a_body_that_says_it_is_something_else_is_a_415(service: Service, media: str) -> None:
    answer = service.client.post("/api/v1/query", content=b'{"sql": "SELECT 1"}', headers={"content-type": media})
    assert_problem(answer, 415, "not_json")


@pytest.mark.parametrize("media", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON", None])
def test_json_by_any_right_name_or_none_is_read(service: Service, media: str | None) -> None:
    headers = {"content-type": media} if media else {}
    answer = service.client.post("/api/v1/query", content=b'{"sql": "SELECT 1", "params": null}', headers=headers)
    assert answer.json()["rows"] == [[1]]


@pytest.mark.parametrize("query_string", ["limit=1", "format=json&x=1", "x=%ff", "format=nope"])
def test_ad_hoc_sql_takes_no_parameters_but_the_format(service: Service, query_string: str) -> None:
    answer = service.client.post(f"/api/v1/query?{query_string}", json={"sql": "SELECT 1"})
    assert answer.status_code in (400, 406)
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_large_body_within_the_limit_is_read(service: Service) -> None:
    text = "é" * 400_000
    assert service.sql("SELECT length($t) AS n", {"t": text}).json()["rows"] == [[400_000]]


def test_a_declared_large_body_is_refused_without_reading_it(service: Service) -> None:
    head = b"POST /api/v1/query HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    # Nothing of the body is ever sent: the answer must not wait for it.
    answer = raw(service, head + b"content-length: 1099511627776\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"body_too_large"' in answer


def test_an_undeclared_large_body_is_refused_at_the_limit(service: Service) -> None:
    head = b"POST /api/v1/query HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    answer = raw(service, head + chunk * 17)  # and never an end
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(service: Service) -> None:
    before = service.metric("http_requests_total", status="499")
    head = b"POST /api/v1/query HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(head)
    wait_until(lambda: service.metric("http_requests_total", status="499") == before + 1, what="the 499 to be counted")


# --- heads ---


def raw(service: Service, data: bytes, until: bytes = b"\r\n\r\n") -> bytes:
    """What the service answers to these bytes, read until the head and its body are there or it closes."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may answer and close before all is sent
            connection.sendall(data)
        received = b""
        while until not in received or not is_complete(received):
            try:
                more = connection.recv(65_536)
            except ConnectionResetError:
                break
            if not more:
                break
            received += more
        return received


def is_complete(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return True


@dataclass
class Heads:
    """A request's headers, and what is wrong with them."""

    name: str
    headers: list[tuple[str, str]]


@pytest.mark.parametrize(
    "heads",
    [
        Heads("5,000 headers", [(f"x-header-{i}", "v") for i in range(5000)]),
        Heads("one of 100 KB", [("x-big", "v" * 100_000)]),
        Heads("a big key", [("x-api-key", "k" * 100_000)]),
        Heads("a big accept", [("accept", "text/csv," * 10_000)]),
        Heads("many cookies", [("cookie", "a=b;" * 10_000)]),
    ],
    ids=lambda heads: heads.name,
)
def test_headers_beyond_reason_are_a_431(service: Service, heads: Heads) -> None:
    for path in ("/api/v1/queries/shops", "/health/live", "/nope"):
        with httpx.Client() as client:
            assert_problem(client.get(service.url + path, headers=heads.headers), 431, "headers_too_large")


def test_a_target_of_a_megabyte_is_cut_off(service: Service) -> None:
    answer = raw(service, b"GET /api/v1/queries/typed?text=" + b"x" * 1_000_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n")
    # It may close while the client is still sending; the client then sees a reset in place of the answer.
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")


def test_headers_without_end_are_cut_off(service: Service) -> None:
    head = b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-endless: "
    with (
        socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection,
        pytest.raises((BrokenPipeError, ConnectionResetError)),
    ):
        connection.sendall(head)
        for _ in range(2000):  # 128 MB, of which it must not take more than a little
            connection.sendall(b"x" * 65_536)
    assert service.metric("http_requests_total", status="431", endpoint="unmatched") > 0


@pytest.mark.parametrize(
    "data",
    [
        b"rubbish\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /health/live HTTP/9.9\r\nhost: x\r\n\r\n",
        b"GET /caf\xe9 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /health/live\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"G\x00T /health/live HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nhost: x\r\nbad header: 1\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\n\r\n",
        b"POST /api/v1/query HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /api/v1/query HTTP/1.1\r\nhost: x\r\ncontent-length: 1e3\r\n\r\n",
        b"POST /api/v1/query HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /api/v1/query HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_a_400_and_the_connection_closes(service: Service, data: bytes) -> None:
    answer = raw(service, data)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"bad_request"' in answer
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    "headers",
    [
        {"if-none-match": "," * 5000},
        {"if-none-match": '"' * 5000},
        {"cache-control": "no-cache" * 1000},
        {"authorization": "Bearer " + "x" * 20_000},
        {"authorization": "Bearer"},
        {"x-forwarded-for": "1.2.3.4," * 3000},
        {"connection": "upgrade", "upgrade": "websocket"},
        {"expect": "100-continue"},
        {"range": "bytes=0-10"},
        {"content-length": "0"},
        {"accept-encoding": "gzip;q=nan"},
        {"x-fault-delay-seconds": "30", "x-fault-status": "500"},
    ],
)
def test_odd_headers_change_nothing(service: Service, headers: dict[str, str]) -> None:
    assert service.get("/api/v1/queries/shops", headers=headers).status_code == 200


def test_after_all_of_this_the_service_is_unharmed(service: Service) -> None:
    assert_unharmed(service)
