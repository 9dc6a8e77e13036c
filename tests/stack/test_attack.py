"""Attacks on the production edge: nothing smuggled reaches a replica, no header changes who somebody is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
from collections.abc import Iterator

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import httpx
import pytest

from tests.support.production import DOMAIN, ProductionStack
from tests.support.service import wait_until
from tests.support.smuggling import INNER, SMUGGLED, exchanged
from tests.support.stack import docker

Headers = list[tuple[str, str]]


@pytest.fixture(scope="module")
def trust(production: ProductionStack) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=production.root_certificate())


@contextlib.contextmanager
def connected(
    production: ProductionStack, trust: ssl.SSLContext, protocol: str = "http/1.1"
) -> Iterator[ssl.SSLSocket]:
    """A TLS connection to the edge; what is sent on it is sent as it is."""
    trust.set_alpn_protocols([protocol])
    with (
        socket.create_connection(("127.0.0.1", production.https_port), 10) as plain,
        trust.wrap_socket(plain, server_hostname=DOMAIN) as secured,
    ):
        yield secured


def logs(production: ProductionStack) -> str:
    """What the replicas logged of late, with all that was asked before: each has logged a barrier."""
    barrier = f"barrier-{os.urandom(6).hex()}"
    for url in production.replicas().values():
        httpx.get(f"{url}/api/v1/queries", headers={"X-Request-ID": barrier}, timeout=10)

    def read() -> str:
        texts = [docker("logs", "--since", "120s", replica) for replica in production.replicas()]
        return "\n".join(texts) if all(barrier in text for text in texts) else ""

    return wait_until(read, 20, what="the replicas' logs")


def marker() -> str:
    return f"smuggled-{os.urandom(6).hex()}"


def test_no_request_within_a_request_reaches_a_replica(production: ProductionStack, trust: ssl.SSLContext) -> None:
    sent: dict[str, str] = {}
    answers: dict[str, bytes] = {}
    with production.client() as other:
        for case, in_pieces in [(case, pieces) for case in SMUGGLED for pieces in (False, True)]:
            make, name = SMUGGLED[case], f"{case}, {'in pieces' if in_pieces else 'at once'}"
            sent[name] = marker()
            with connected(production, trust) as connection:
                answers[name] = exchanged(connection, make(DOMAIN, sent[name]), 0.3, in_pieces=in_pieces)
            # Whoever asks next, on connections to the replicas that the attack may have left something on.
            for number in range(2):
                mine = f"next-{number}-{sent[name]}"
                answer = other.get(f"/api/v1/queries/shops?limit={number + 1}", headers={"X-Request-ID": mine})
                assert answer.headers["X-Request-ID"] == mine, name
                assert answer.json()["row_count"] == number + 1, name
    seen = logs(production)
    # An id of the attack's own request may be there; the one within it must not.
    assert [name for name, mark in sent.items() if f'"{mark}"' in seen] == []
    for name, answer in answers.items():
        assert answer.replace(b"HTTP/1.1 100 ", b"").count(b"HTTP/1.1 ") <= 1, name
        assert sent[name].encode() not in answer.replace(sent[name].encode() + b"-outer", b""), name


def test_requests_one_after_the_other_on_a_connection_get_their_own_answers(
    production: ProductionStack, trust: ssl.SSLContext
) -> None:
    (key,) = production.key.values()
    ask = (
        "GET /api/v1/queries/shops?limit={n} HTTP/1.1\r\nHost: {host}\r\n"
        "X-API-Key: {key}\r\nX-Request-ID: order-{n}\r\nConnection: {connection}\r\n\r\n"
    )
    data = "".join(
        ask.format(n=n, host=DOMAIN, key=key, connection="close" if n == 3 else "keep-alive") for n in (1, 2, 3)
    )
    with connected(production, trust) as connection:
        answer = exchanged(connection, data.encode(), 20)
    assert re.findall(rb"(?i)x-request-id: order-(\d)", answer) == [b"1", b"2", b"3"]
    assert re.findall(rb'"row_count":(\d)', answer) == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    ("line", "length"),
    [("POST /api/v1/query", 5_000_000), ("POST /api/v1/query", 1_500_000), ("POST /nothing", 1_500_000),
     ("POST /grafana/x", 1_500_000), ("GET /api/v1/queries", 1_500_000), ("GET /health/live", 1_500_000),
     ("DELETE /api/v1/cache?query=shops", 1_500_000)],
)  # fmt: skip
@pytest.mark.parametrize("sent_of_it", [0.1, 1])
def test_behind_a_body_that_nobody_read_nothing_of_it_is_taken_for_a_request(
    production: ProductionStack, trust: ssl.SSLContext, line: str, length: int, sent_of_it: float
) -> None:
    mark = marker()
    inner = INNER.format(host=DOMAIN, marker=mark).encode()
    kind = f"Content-Type: application/json\r\nContent-Length: {length}"
    head = f"{line} HTTP/1.1\r\nHost: {DOMAIN}\r\n{kind}\r\n\r\n"
    with connected(production, trust) as connection:
        answer = exchanged(connection, head.encode() + inner * int(length * sent_of_it / len(inner)), 1)
    assert answer.count(b"HTTP/1.1 ") <= 1, answer[:2000]
    assert f'"{mark}"' not in logs(production)


# --- HTTP/2, which becomes HTTP/1.1 behind the edge


def asked_over_http_2(
    production: ProductionStack, trust: ssl.SSLContext, headers: Headers, body: bytes
) -> tuple[int | None, bytes]:
    """Status (None: the stream or the connection was cut) and body of a request with headers just as given."""
    # The client's own library must not put them right, nor refuse them.
    config = h2.config.H2Configuration(
        client_side=True,
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
        validate_inbound_headers=False,
        header_encoding="latin-1",
    )
    protocol = h2.connection.H2Connection(config=config)
    status, received = None, b""
    with connected(production, trust, "h2") as connection:
        connection.settimeout(10)
        protocol.initiate_connection()
        protocol.send_headers(1, headers, end_stream=not body)
        if body:
            protocol.send_data(1, body, end_stream=True)
        connection.sendall(protocol.data_to_send())
        while data := _received(connection):
            for event in protocol.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived) and event.headers:
                    status = int({str(name): str(value) for name, value in event.headers}[":status"])
                elif isinstance(event, h2.events.DataReceived):
                    received += event.data or b""
                elif isinstance(event, h2.events.StreamEnded):
                    return status, received
                elif isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                    return None, received
            connection.sendall(protocol.data_to_send())
    return None, received


def _received(connection: ssl.SSLSocket) -> bytes:
    try:
        return connection.recv(65_536)
    except OSError:
        return b""


def pseudo(method: str = "POST", path: str = "/api/v1/query", authority: str = DOMAIN) -> Headers:
    return [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path)]


BREAK = "\r\n\r\n"


@pytest.mark.parametrize(
    "extra",
    [
        [("transfer-encoding", "chunked")],
        [("Transfer-Encoding", "chunked")],
        [("te", "gzip, chunked")],
        [("content-length", "0")],
        [("content-length", "5"), ("content-length", "0")],
        [("content-length", "-1")],
        [("connection", "transfer-encoding, x-api-key")],
        [("connection", "keep-alive"), ("keep-alive", "x")],
        [("upgrade", "h2c")],
        [("x", f"y{BREAK}INNER")],
        [(f"x: y{BREAK}INNER", "z")],
        [("x", "y\nTransfer-Encoding: chunked")],
        [("x\0", "y")],
        [("x", "y\0z")],
        [("cookie", f"a{BREAK}INNER")],
        [("content-type", f"application/json{BREAK}INNER")],
    ],
    ids=lambda extra: ascii(extra[0])[:60],
)
def test_what_http_1_would_read_differently_does_not_pass_from_http_2(
    production: ProductionStack, trust: ssl.SSLContext, extra: Headers
) -> None:
    mark = marker()
    inner = INNER.format(host=DOMAIN, marker=mark)
    headers = [(name.replace("INNER", inner), value.replace("INNER", inner)) for name, value in extra]
    body = b"0\r\n\r\n" + inner.encode()
    status, answer = asked_over_http_2(
        production,
        trust,
        [*pseudo(), ("content-type", "application/json"), ("x-request-id", f"{mark}-outer"), *headers],
        body,
    )
    assert status in (None, 400, 401, 413, 415), (status, answer)
    assert f'"{mark}"' not in logs(production)


@pytest.mark.parametrize(
    "lines",
    [
        pseudo(method=f"GET /api/v1/queries HTTP/1.1{BREAK}INNER"),
        pseudo(path=f"/api/v1/query HTTP/1.1{BREAK}INNER"),
        pseudo(path="/api/v1/queries\r\nX: y"),
        pseudo(authority=f"{DOMAIN}{BREAK}INNER"),
        pseudo(path="http://query:8000/metrics"),
        pseudo(path="*"),
        pseudo(path=""),
        [*pseudo(), (":path", "/metrics")],
        [*pseudo(), ("host", "query:8000")],
    ],
    ids=lambda lines: ascii([value for _, value in lines if value not in (DOMAIN, "https", "POST")])[:60],
)
def test_a_request_line_made_of_http_2s_pieces_holds_no_second_request(
    production: ProductionStack, trust: ssl.SSLContext, lines: Headers
) -> None:
    mark = marker()
    inner = INNER.format(host=DOMAIN, marker=mark)
    status, answer = asked_over_http_2(
        production, trust, [(name, value.replace("INNER", inner)) for name, value in lines], b"{}"
    )
    assert status is None or 400 <= status < 500 or status == 501, (status, answer)
    assert b"http_requests_total" not in answer
    assert f'"{mark}"' not in logs(production)


# --- headers


@pytest.mark.parametrize(
    "named",
    ["X-API-Key", "x-api-key, close", "Authorization, X-API-Key", "X-Forwarded-For", "Host", "Content-Length",
     "X-Forwarded-For, X-Real-IP, Forwarded, X-API-Key", "X-Request-ID"],
)  # fmt: skip
def test_a_header_called_the_connections_own_makes_nobody_anybody(production: ProductionStack, named: str) -> None:
    """The edge must take such headers away; who is left without a key is refused, and nobody is the edge."""
    mine = f"hop-{os.urandom(6).hex()}"
    headers = {"Connection": named, "X-Request-ID": mine, "X-Forwarded-For": "6.6.6.6"}
    with production.client(headers={**production.key, **headers}) as client:
        answer = client.get("/api/v1/queries")
    assert answer.status_code == (401 if "api-key" in named.lower() else 200), answer.text
    if named == "X-Request-ID":
        return
    text = logs(production)
    (line,) = [json.loads(line) for line in text.splitlines() if f'"{mine}"' in line]
    if answer.status_code == 401:
        assert line["client"].startswith("addr-") and "6.6.6.6" not in line["client"]
        assert line["client"] != f"addr-{production.prefix}.2", "counted as the edge, like everybody else"
    else:
        assert line["client"].startswith("key-")


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({"Host": "evil.example"}, {200, 400, 421}),
        ({"Host": "query:8000"}, {200, 400, 421}),
        ({"Host": f"{DOMAIN}, evil.example"}, {400, 421}),
        ({"Host": f"{DOMAIN}@evil.example"}, {200, 400, 421}),
        ({"Host": "../../etc/passwd"}, {200, 400, 421}),
        ({"X-Forwarded-Host": "evil.example"}, {200}),
        ({"X-Forwarded-Proto": "http"}, {200}),
        ({"X-Original-URL": "/metrics"}, {200}),
        ({"X-Rewrite-URL": "/metrics"}, {200}),
        ({"X-HTTP-Method-Override": "DELETE"}, {200}),
        ({"X-Accel-Redirect": "/metrics"}, {200}),
        ({"Forwarded": "for=6.6.6.6;host=evil.example;proto=http"}, {200}),
        ({"Origin": "https://evil.example"}, {200}),
        ({"Range": "bytes=0-3"}, {200}),
        ({"Via": "1.1 evil"}, {200}),
        ({"Max-Forwards": "0"}, {200}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_hosts_name_or_a_forwarders_word_changes_no_answer_and_is_not_repeated(
    production: ProductionStack, headers: dict[str, str], wanted: set[int]
) -> None:
    with production.client() as client:
        text = f"/api/v1/queries/shops?limit={len(str(headers)) % 90 + 1}"
        answer = client.get(text, headers=headers)
        assert answer.status_code in wanted, answer.text
        plain = client.get(text)
        assert plain.status_code == 200 and "evil" not in plain.text + str(plain.headers)
        if answer.status_code == 200 and answer.content:
            assert answer.content == plain.content
    for said in (answer.text, str(answer.headers)):
        assert "evil" not in said and "http_requests_total" not in said


def test_a_stored_answer_is_told_apart_by_what_it_depends_on(production: ProductionStack) -> None:
    with production.client() as client:
        sql = {"sql": "select s.shop, s.amount from sales s"}
        packed = client.post("/api/v1/query", json=sql, headers={"Accept-Encoding": "gzip"})
        plain = client.post("/api/v1/query", json=sql, headers={"Accept-Encoding": "identity"})
        named = client.get("/api/v1/queries/shops")
        tag = packed.headers["ETag"]
        again = client.get("/api/v1/queries/shops", headers={"If-None-Match": named.headers["ETag"]})
        refused = client.get("/api/v1/queries/nothing")
    vary = {part.strip() for line in packed.headers.get_list("Vary") for part in line.split(",")}
    assert {"Accept", "Authorization", "X-API-Key", "Accept-Encoding"} <= vary
    assert packed.headers["Cache-Control"].startswith("private") and packed.content == plain.content
    assert tag != plain.headers["ETag"], "equal tags for different bytes"
    assert (again.status_code, again.content) == (304, b"")
    assert refused.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "value", ['x", "status": 200', "a\tb", "a b", "é", "x" * 65, "../../x", "\u2028", "%0a{}", "$(id)", "a;b", "{{x}}"]
)
def test_an_odd_request_id_is_not_taken(production: ProductionStack, value: str) -> None:
    with production.client(headers={**production.key}) as client:
        answer = client.get("/api/v1/queries", headers=[(b"X-Request-ID", value.encode("utf-8"))])
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])


@pytest.mark.parametrize(
    "headers",
    [[("x-big", "v" * 100_000)], [(f"x-{i}", "v") for i in range(5000)], [("cookie", "a=b;" * 20_000)],
     [("x-api-key", "k" * 60_000)]],
    ids=["one of 100 KB", "5,000", "cookies", "a key"],
)  # fmt: skip
def test_headers_beyond_reason_are_refused_at_the_edge(production: ProductionStack, headers: Headers) -> None:
    for http2 in (False, True):
        with production.client(http2=http2, headers={}) as client, contextlib.suppress(httpx.TransportError):
            answer = client.get("/api/v1/queries", headers=headers)
            assert answer.status_code in (400, 431), answer.text
    with production.client() as client:
        assert client.get("/api/v1/queries").status_code == 200


def test_a_packed_body_is_refused_through_the_edge_too(production: ProductionStack) -> None:
    with production.client() as client:
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        answer = client.post("/api/v1/query", content=b"\x1f\x8b" + b"\0" * 1000, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "packed_body")


def test_guesses_through_the_edge_are_counted_against_the_guesser_and_not_the_edge(production: ProductionStack) -> None:
    mine = [f"guess-{n}-{os.urandom(4).hex()}" for n in range(3)]
    for n, name in enumerate(mine):
        headers = {"X-API-Key": f"bi_{n:012x}_" + "A" * 43, "X-Request-ID": name, "X-Forwarded-For": f"6.6.6.{n}"}
        with production.client(headers=headers) as client:
            assert client.get("/api/v1/queries").status_code == 401
    lines = [json.loads(line) for line in logs(production).splitlines() if any(f'"{name}"' in line for name in mine)]
    (client_seen,) = {line["client"] for line in lines}
    assert len(lines) == 3 and client_seen not in ("addr-6.6.6.0", f"addr-{production.prefix}.2")
