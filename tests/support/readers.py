"""Clients that ask over a socket of their own and read as little as they like."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping

import orjson

LITTLE = 4096
"""Bytes that such a client's system keeps for it (twice that, as Linux counts)."""


def large_sql(number: int, rows: int = 30_000) -> str:
    """A SELECT whose answer has about 270 bytes a row, and is another for every `number`."""
    return f"select i, repeat(md5((i + {number})::varchar), 8) as text from range({rows}) r(i)"


def connect(host: str, port: int) -> socket.socket:
    """A connection with hardly any room for what it is sent."""
    connection = socket.socket()
    connection.settimeout(60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LITTLE)
    connection.connect((host, port))
    return connection


def get(path: str, *lines: str) -> bytes:
    """A GET request's bytes; `lines` are more lines of its head."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def post_sql(sql: str, headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a request with ad-hoc SQL."""
    body = orjson.dumps({"sql": sql})
    given = {"Host": "x", "Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"POST /api/v1/query HTTP/1.1\r\n{head}\r\n".encode() + body


@contextlib.contextmanager
def asked(host: str, port: int, requests: list[bytes]) -> Iterator[list[socket.socket]]:
    """A connection for each request, sent; nothing is read, and in the end all are closed."""
    with contextlib.ExitStack() as held:
        connections = [held.enter_context(connect(host, port)) for _ in requests]
        for connection, request in zip(connections, requests, strict=True):
            connection.sendall(request)
        yield connections
