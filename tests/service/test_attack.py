"""Attacks on the service itself, without an edge: what it cuts, what it stores, what it writes down."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import zstandard
from bi_query.access import Role
from bi_query.errors import ConfigurationError, PublishError
from bi_query.keys import KeyFile
from bi_query.rollback import roll_back
from bi_query.snapshot_files import SnapshotUnusable, read_pointer, replace_file, snapshot_path

from tests.support.keys import made_keys
from tests.support.redis_server import RedisServer
from tests.support.service import Service, running, wait_until
from tests.support.small import Small, make_small
from tests.support.smuggling import SMUGGLED, Make, exchanged

ECHO = """/*---
title: Says it again
freshness: steady
parameters:
  text: {type: string, default: x, max_length: 500}
---*/
select $text as text
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    small = make_small(tmp_path_factory.mktemp("attack"))
    (small.catalogue / "queries" / "echo.sql").write_text(ECHO)
    small.publish()
    return small


@pytest.fixture(scope="module")
def audit(small: Small) -> Path:
    return small.root / "audit.jsonl"


@pytest.fixture(scope="module")
def service(small: Small, audit: Path) -> Iterator[Service]:
    with running(small.snapshots, catalogue_dir=small.catalogue, audit_log=audit) as service:
        yield service
        assert "Traceback" not in service.errors()
        assert service.metric("http_requests_in_progress") == 1


def connected(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=10)


def logged_ids(service: Service) -> set[str]:
    """The request ids of the log once everything that was asked before stands there."""
    barrier = f"barrier-{os.urandom(6).hex()}"
    service.get("/api/v1/queries", headers={"x-request-id": barrier})
    wait_until(lambda: barrier in (service.folder / "out.log").read_text(), 10, what="the log to be written")
    return {line["request_id"] for line in service.log_lines()}


# --- requests within requests


@pytest.mark.parametrize("in_pieces", [False, True], ids=["at once", "in pieces"])
@pytest.mark.parametrize("make", SMUGGLED.values(), ids=SMUGGLED)
def test_a_request_within_a_request_is_never_run(service: Service, make: Make, in_pieces: bool) -> None:
    marker = f"smuggled-{os.urandom(6).hex()}"
    with connected(service) as connection:
        answer = exchanged(connection, make("127.0.0.1", marker), 0.2, in_pieces=in_pieces)
    assert answer.replace(b"HTTP/1.1 100 ", b"").count(b"HTTP/1.1 ") <= 1, answer
    assert marker.encode() not in answer.replace(marker.encode() + b"-outer", b"")
    assert marker not in logged_ids(service)


def test_requests_one_after_the_other_on_a_connection_are_answered_in_their_order(service: Service) -> None:
    ask = b"GET /api/v1/queries/echo?text=%d HTTP/1.1\r\nhost: x\r\nx-request-id: in-order-%d\r\n\r\n"
    with connected(service) as connection:
        answer = exchanged(connection, b"".join(ask % (n, n) for n in range(5)), 1.5)
    assert re.findall(rb"x-request-id: (in-order-\d)", answer) == [b"in-order-%d" % n for n in range(5)]
    assert re.findall(rb'"rows":\[\["(\d)"\]\]', answer) == [b"%d" % n for n in range(5)]


CHUNKED = b"POST /api/v1/query HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"\r\n0\r\nx-trailer: ", b"x" * 65_536),
        (b"\r\n0\r\n", b"x-trailer: y\r\n" * 4000),
        (b"\r\n1;extension=", b"x" * 65_536),
        (b"\r\n" + b"0" * 1000, b"0" * 65_536),
    ],
    ids=["a trailer", "trailers", "an extension", "noughts"],
)
def test_what_frames_a_body_and_has_no_end_is_cut_off(service: Service, start: bytes, more: bytes) -> None:
    with connected(service) as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
        connection.sendall(CHUNKED + start)
        for _ in range(2000):  # 128 MB, of which it must not take more than a little
            connection.sendall(more)
    assert service.get("/health/live").status_code == 200


def test_a_body_of_many_small_chunks_is_read(service: Service) -> None:
    body = json.dumps({"sql": "select 42 as v -- " + "x" * 50_000}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    with connected(service) as connection:
        answer = exchanged(connection, CHUNKED + b"\r\n" + chunks + b"0\r\n\r\n", 3)
    assert b'"rows":[[42]]' in answer, answer[:300]


def test_headers_behind_the_body_change_nothing(service: Service) -> None:
    body = b'{"sql": "select 43 as v"}'
    trailers = b"if-none-match: *\r\ncontent-type: text/csv\r\ncontent-encoding: gzip\r\nx-api-key: other\r\n"
    framed = b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, trailers)
    with connected(service) as connection:
        connection.sendall(CHUNKED + b"\r\n")
        answer = exchanged(connection, framed, 2)
    assert answer.startswith(b"HTTP/1.1 200 ") and b'"rows":[[43]]' in answer, answer[:300]


# --- bodies that unpack


@pytest.mark.parametrize("path", ["/api/v1/query", "/mcp"])
@pytest.mark.parametrize(
    "encoding", ["gzip", "zstd", "br", "deflate", "x-gzip", "gzip, gzip", "identity, gzip", "GZIP", "?"]
)
def test_a_packed_body_is_refused_unread(small: Small, service: Service, path: str, encoding: str) -> None:
    bomb = {"zstd": zstandard.compress, "deflate": zlib.compress}.get(encoding, gzip.compress)(b" " * 50_000_000)
    headers = {"content-type": "application/json", "content-encoding": encoding}
    answer = service.client.post(path, content=bomb, headers=headers)
    if path == "/mcp":
        assert answer.status_code in (404, 415)  # 404: agents are not served here
        return
    assert (answer.status_code, answer.json()["code"]) == (415, "packed_body")
    assert answer.headers["accept-encoding"] == "identity"


def test_agents_send_no_packed_bodies_either(small: Small) -> None:
    with running(small.snapshots, catalogue_dir=small.catalogue, mcp=True) as agents:
        headers = {"content-type": "application/json", "content-encoding": "gzip", "accept": "application/json"}
        answer = agents.client.post("/mcp", content=gzip.compress(b" " * 50_000_000), headers=headers)
    assert answer.status_code == 415 and answer.json()["error"]["data"]["code"] == "packed_body"


def test_a_body_that_says_it_is_as_it_is_is_read(service: Service) -> None:
    answer = service.client.post(
        "/api/v1/query", json={"sql": "select 44 as v"}, headers={"content-encoding": "identity"}
    )
    assert answer.json()["rows"] == [[44]]


def test_an_entry_of_redis_that_unpacks_to_hundreds_of_megabytes_is_not_unpacked(
    small: Small, redis_server: RedisServer
) -> None:
    with running(small.snapshots, catalogue_dir=small.catalogue, redis_url=redis_server.url) as service:
        good = service.query("echo", text="bomb")
        client = redis_server.client
        (name,) = wait_until(lambda: list(client.scan_iter(match="*entry:*bomb*")), 10, what="the entry to be stored")
        poison(client, name)
    with running(small.snapshots, catalogue_dir=small.catalogue, redis_url=redis_server.url) as service:
        before = peak_bytes(service)
        answer = service.query("echo", text="bomb")
        assert (answer.headers["x-cache"], answer.content) == ("miss", good.content)
        assert peak_bytes(service) - before < 200_000_000
        assert service.metric("bi_cache_redis_errors_total") >= 1


def test_a_service_told_to_stop_the_moment_it_is_ready_stops(small: Small, redis_server: RedisServer) -> None:
    for _ in range(2):
        with running(small.snapshots, catalogue_dir=small.catalogue, redis_url=redis_server.url) as service:
            service.query("echo", text="brief")
            service.signal(signal.SIGTERM)
            assert service.process.wait(10) == 0


def poison(client: Any, name: bytes) -> None:
    """Put 400 MB of nothing, packed, in the place of an entry's body, with all sums right."""
    data: bytes = client.get(name)
    length = int.from_bytes(data[8:12], "big")
    header = json.loads(data[12 : 12 + length])
    packer = zstandard.ZstdCompressor(level=1).compressobj(size=400_000_000)
    body = b"".join([packer.compress(b"\0" * 10_000_000) for _ in range(40)]) + packer.flush()
    header["compressed"] = True
    text = json.dumps(header).encode()
    rest = text + body
    client.set(name, data[:4] + zlib.crc32(rest).to_bytes(4, "big") + len(text).to_bytes(4, "big") + rest)


def peak_bytes(service: Service) -> int:
    """The most memory the service's process ever held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{service.process.pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


# --- answers for others


UNKEYED = [
    {"accept": "*/*"},
    {"accept": "application/json;q=0.1, */*;q=0.01"},
    {"accept-encoding": "gzip, br;q=1, *;q=0"},
    {"accept-language": "../../../etc/passwd"},
    {"host": "evil.example"},
    {"host": "127.0.0.1:1"},
    {"x-forwarded-host": "evil.example"},
    {"x-forwarded-for": "6.6.6.6"},
    {"x-forwarded-proto": "gopher"},
    {"x-forwarded-prefix": "/evil"},
    {"forwarded": "for=6.6.6.6;host=evil.example"},
    {"x-real-ip": "6.6.6.6"},
    {"origin": "https://evil.example"},
    {"referer": "https://evil.example"},
    {"range": "bytes=0-3"},
    {"if-range": "x", "range": "bytes=0-3"},
    {"if-none-match": '"x", "y"'},
    {"if-match": '"x"'},
    {"if-modified-since": "Wed, 21 Oct 2065 07:28:00 GMT"},
    {"cache-control": "max-age=0, only-if-cached"},
    {"pragma": "no-cache"},
    {"x-original-url": "/api/v1/tables"},
    {"x-rewrite-url": "/api/v1/tables"},
    {"x-http-method-override": "DELETE"},
    {"x-method-override": "POST"},
    {"x-http-method": "DELETE"},
    {"x-cache": "hit"},
    {"x-data-version": "0" * 16},
    {"cookie": "session=1; format=csv"},
    {"content-type": "text/csv"},
    {"x-request-id": "poison"},
    {"user-agent": "<script>alert(1)</script>"},
    {"te": "trailers"},
    {"max-forwards": "0"},
    {"upgrade-insecure-requests": "1"},
]


@pytest.mark.parametrize("headers", UNKEYED, ids=["-".join(headers) for headers in UNKEYED])
def test_a_header_that_is_no_part_of_the_key_changes_nothing_for_others(
    service: Service, headers: dict[str, str]
) -> None:
    text = f"poison-{os.urandom(6).hex()}"
    wanted = {"columns": [{"name": "text", "type": "VARCHAR"}], "rows": [[text]], "row_count": 1, "truncated": False}
    first = service.query("echo", headers, text=text)
    assert (first.status_code, first.headers["x-cache"], first.json()) == (200, "miss", wanted)
    then = service.query("echo", text=text)
    assert (then.status_code, then.headers["x-cache"], then.content) == (200, "hit", first.content)
    assert then.headers["content-type"] == "application/json"
    assert then.headers["vary"] == "Accept, Authorization, X-API-Key"
    assert then.headers["cache-control"].startswith("private, ")
    for name, value in headers.items():
        assert name == "accept" or len(value) < 6 or value not in str(then.headers), (
            "a header of another's request in this answer"
        )


@pytest.mark.parametrize("headers", [{"accept": "text/csv"}, {"accept": "application/vnd.apache.parquet"}])
def test_a_header_that_chooses_the_format_is_part_of_the_key(service: Service, headers: dict[str, str]) -> None:
    text = f"format-{os.urandom(6).hex()}"
    assert service.query("echo", headers, text=text).headers["content-type"].startswith(headers["accept"])
    assert service.query("echo", text=text).headers["x-cache"] == "miss"
    assert service.query("echo", text=text).json()["rows"] == [[text]]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/api/v1/queries/echo?text=a&text=b", 400),
        ("/api/v1/queries/echo?text=a&TEXT=b", 400),
        ("/api/v1/queries/echo?text=%00", 400),
        ("/api/v1/queries/echo?text=a&format=nothing", 406),
        ("/api/v1/queries/nothing?text=a", 404),
        ("/api/v1/queries/echo/", 404),
        ("/api/v1/queries/echo;text=b?text=a", 404),
        ("//api/v1/queries/echo?text=a", 404),
        ("/api/v1/queries/echo%3Ftext=b?text=a", 404),
        ("/api/v1/queries/echo%23?text=a", 404),
        ("/api/v1/queries/echo%00?text=a", 404),
    ],
)  # fmt: skip
def test_a_refusal_is_never_stored_nor_an_answer_of_another_path(service: Service, target: str, status: int) -> None:
    entries = service.metric("bi_cache_entries")
    for _ in range(2):
        answer = service.client.get("/", extensions={"target": target.encode()})
        assert (answer.status_code, answer.headers["cache-control"]) == (status, "no-store"), answer.text
    assert service.metric("bi_cache_entries") == entries
    assert service.query("echo", text="a").json()["rows"] == [["a"]]


def test_a_failing_query_is_not_remembered_as_failing(service: Service) -> None:
    for _ in range(2):
        answer = service.sql("select cast('x' as integer) as v")
        assert (answer.status_code, answer.headers["cache-control"]) == (422, "no-store")
    assert service.metric("bi_cache_requests_total", query="ad_hoc", result="hit") == 0


# --- names that reach for files


@pytest.mark.parametrize(
    "name",
    ["..%2f..%2f..%2fetc%2fpasswd", "..", ".", "%2e%2e", "%2e%2e%2fqueries%2fecho", "....%2f%2f", "..%5c..%5cboot.ini",
     "..%c0%af..%c0%afetc", "echo.sql", "..%2fqueries%2fecho.sql", "%00", "echo%00.sql", "file:%2f%2f%2fetc%2fpasswd",
     "C:%5cx", "~root", "$HOME", "%252e%252e%252f"],
)  # fmt: skip
def test_no_name_of_a_query_reaches_a_file(service: Service, name: str) -> None:
    answer = service.client.get("/", extensions={"target": f"/api/v1/queries/{name}".encode()})
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), answer.text
    assert "root:" not in answer.text
    forgotten = service.client.request("DELETE", "/", extensions={"target": f"/api/v1/cache?query={name}".encode()})
    assert forgotten.status_code in (400, 404)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", "", "*", "current", "x\0y", "a" * 5000, "\udcff"]
)
def test_going_back_takes_the_id_of_a_kept_snapshot_and_no_path(small: Small, name: str) -> None:
    (small.snapshots.parent / "outside.duckdb").write_bytes(b"x")
    before = (small.snapshots / "current.json").read_bytes()
    for wanted in (name, f"../{name}", "../outside"):
        if wanted:
            with pytest.raises(PublishError, match="there is no snapshot"):
                roll_back(small.snapshots, wanted)
    assert (small.snapshots / "current.json").read_bytes() == before


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", ".", "", "x\0", "*", "\udcff", 5, None, ["x"]])
def test_a_pointer_that_names_a_path_is_not_read(tmp_path: Path, name: object) -> None:
    (tmp_path / "current.json").write_text(json.dumps({"snapshot_id": name, "published_at": 1.0}))
    try:
        pointer = read_pointer(tmp_path)
    except SnapshotUnusable:
        return
    assert pointer is not None and snapshot_path(tmp_path, pointer.snapshot_id).parent == tmp_path


def test_a_service_whose_pointer_is_bent_to_a_path_goes_on_with_the_snapshot_it_has(tmp_path: Path) -> None:
    small = make_small(tmp_path)
    small.publish()
    (snapshot,) = small.snapshots.glob("*.duckdb")
    outside = small.root / "outside.duckdb"
    outside.write_bytes(snapshot.read_bytes())
    with running(small.snapshots, catalogue_dir=small.catalogue, snapshot_poll_seconds=0.05) as service:
        served = service.query("shops").headers["x-data-version"]
        pointer = {"snapshot_id": "../outside", "published_at": 1.0}
        replace_file(small.snapshots / "current.json", json.dumps(pointer).encode())
        wait_until(lambda: service.metric("bi_snapshot_load_failures_total") > 0, what="the pointer to be refused")
        assert service.query("shops", {"cache-control": "no-cache"}).headers["x-data-version"] == served


@pytest.mark.parametrize("name", ["../../etc/cron.d/x", "a/b", "a\nb", "..", "", "\x1b[2J", "a\0b", "\u2028"])
def test_no_name_of_a_key_is_a_path_or_ends_a_line(tmp_path: Path, name: str) -> None:
    file = KeyFile(tmp_path / "keys.json")
    with pytest.raises(ConfigurationError):
        file.add(name, Role.READER)
    with pytest.raises(ConfigurationError):
        file.revoke(name)
    assert not file.path.exists()


# --- logs


FORGERIES = [
    '\n{"request_id": "forged"}\n',
    "\r\nforged: yes\r\n",
    '\u2028{"request_id": "forged"}\u2029',
    '\u0085{"request_id": "forged"}\x0b\x0c\x1c\x1d\x1e',
    "\x1b[2J\x1b[31mforged\x1b[0m\x07\x08\x08",
    "\x9b31mforged\x9d",
    "\u202eforged\u202c\u2066\u200b\ufeff\x7f",
    '", "status": 200, "x": "forged',
    "\\u000a\\n\\x0aforged",
]
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\u200b\ufeff]")


@pytest.mark.parametrize("text", FORGERIES, ids=[ascii(text)[:20] for text in FORGERIES])
def test_nothing_that_is_sent_ends_a_line_of_a_log_or_commands_a_terminal(
    service: Service, audit: Path, text: str
) -> None:
    marker = f"forgery-{os.urandom(6).hex()}"
    ids = [f"{marker}-{n}" for n in range(5)]
    latin = text.encode("utf-8")
    service.client.get("/api/v1/queries/echo", params={"text": text}, headers={"x-request-id": ids[0]})
    service.client.get(f"/api/v1/queries/{quote(text)}", headers={"x-request-id": ids[1]})
    service.sql(f"select 1 as v /* {text} */", x_request_id=ids[2])
    service.sql("select $a as v", {"a": text}, x_request_id=ids[3])
    body = json.dumps({"sql": 1, text: text}).encode()
    service.client.post(
        "/api/v1/query", content=body, headers={"x-request-id": ids[4], "content-type": "application/json"}
    )
    for name in (b"user-agent", b"x-api-key", b"x-forwarded-for", b"x-request-id", b"referer"):
        head = (
            b"GET /api/v1/queries HTTP/1.1\r\nhost: x\r\n"
            + name
            + b": "
            + latin.replace(b"\n", b" ").replace(b"\r", b" ")
        )
        with connected(service) as connection:
            exchanged(connection, head + b"\r\nconnection: close\r\n\r\n", 2)
    assert set(ids) <= logged_ids(service)
    wait_until(lambda: ids[4] in audit.read_text(), 10, what="the audit log to be written")
    for file in (audit, service.folder / "out.log", service.folder / "err.log"):
        written = file.read_text()
        assert UNSAFE.search(written) is None, file.name
        assert written.splitlines() == written.split("\n")[:-1]
        lines = [json.loads(line) for line in written.splitlines() if file.name != "err.log"]
        assert not [line for line in lines if line.get("request_id") == "forged" or line.get("status") == "forged"]
    line = next(line for line in map(json.loads, audit.read_text().splitlines()) if line["request_id"] == ids[2])
    assert line["sql"] == f"select 1 as v /* {text} */", "what is escaped is written all the same"


# --- keys


def test_a_guesser_is_one_address_whatever_else_it_changes(small: Small, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    good = made_keys(file, ana=Role.READER)["ana"]
    audit = tmp_path / "audit.jsonl"
    settings = {"keys_file": file, "rate_limit": "10/minute", "audit_log": audit}
    with running(small.snapshots, catalogue_dir=small.catalogue, **settings) as service:
        seen = []
        for n in range(14):
            guess = f"bi_{n:012x}_{'A' * 43}"
            headers: dict[str, str] = {
                "x-forwarded-for": f"6.6.6.{n}",
                "forwarded": f"for=6.6.6.{n}",
                "user-agent": f"guesser {n}",
                **({"authorization": f"Bearer {guess}"} if n % 2 else {"x-api-key": guess}),
            }
            seen.append(service.get("/api/v1/queries", headers=headers).status_code)
        assert seen == [401] * 10 + [429] * 4
        assert service.get("/api/v1/queries", headers={"x-api-key": good}).status_code == 200
        assert service.metric("bi_auth_failures_total", reason="bad_key") == 10
        wait_until(lambda: len(audit.read_text().splitlines()) == 15, 10, what="the audit log")
    guesses = [json.loads(line) for line in audit.read_text().splitlines()][:14]
    assert {(line["key"], line["client"]) for line in guesses} == {("(refused key)", "addr-127.0.0.1")}
    assert "AAAA" not in audit.read_text()


def test_of_several_keys_in_one_request_a_wrong_one_does_not_open_more(small: Small, tmp_path: Path) -> None:
    """Whichever counts, it counts alone: never one key's role with another's rows."""
    file = tmp_path / "keys.json"
    keys = list(made_keys(file, reader=Role.READER, admin=Role.ADMIN).values())
    with running(small.snapshots, catalogue_dir=small.catalogue, keys_file=file) as service:
        for pair, wanted in (((keys[0], keys[1]), 200), ((keys[1], keys[0]), 403), ((keys[1], "nonsense"), 401)):
            answer = httpx.get(
                f"{service.url}/api/v1/publish", headers=[("x-api-key", key) for key in pair], timeout=10
            )
            assert answer.status_code == wanted
            joined = httpx.get(f"{service.url}/api/v1/publish", headers={"x-api-key": ", ".join(pair)}, timeout=10)
            assert joined.status_code == 401
