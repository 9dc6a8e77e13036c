"""Requests that two readers may cut in different places: what one takes for a body holds a request for the other."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable

INNER = "GET /api/v1/queries HTTP/1.1\r\nHost: {host}\r\nX-Request-ID: {marker}\r\n\r\n"
_JSON = (
    "POST /api/v1/query HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nX-Request-ID: {marker}-outer\r\n"
)
_READ_BY_THEN_SECONDS = 0.05  # too early only makes a test too kind
Make = Callable[[str, str], bytes]


def _post(headers: str, body: Callable[[str], str]) -> Make:
    def make(host: str, marker: str) -> bytes:
        inner = INNER.format(host=host, marker=marker)
        text = _JSON.format(host=host, marker=marker) + headers + "\r\n" + body(inner)
        return text.replace("{length}", str(len(inner))).encode("latin-1")

    return make


def _te(value: str, name: str = "Transfer-Encoding:") -> Make:
    """A Transfer-Encoding that one may overlook: with Content-Length the body, without it an end and a request."""
    return _post(f"Content-Length: {{length}}5\r\n{name} {value}\r\n", lambda inner: "0\r\n\r\n" + inner)


def _chunks(body: Callable[[str], str]) -> Make:
    return _post("Transfer-Encoding: chunked\r\n", body)


SMUGGLED: dict[str, Make] = {
    "CL.TE": _post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", lambda inner: "0\r\n\r\n" + inner),
    "CL.TE with all of it in the length": _te("chunked"),
    "TE.CL": _post(
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", lambda inner: f"{len(inner):x}\r\n{inner}\r\n0\r\n\r\n"
    ),
    "TE.TE, the second unknown": _te("chunked\r\nTransfer-Encoding: x"),
    "TE.TE, the first unknown": _te("x\r\nTransfer-Encoding: chunked"),
    "TE, a list that does not end in chunked": _te("chunked, identity"),
    "TE, gzip and chunked": _te("gzip, chunked"),
    "TE, a letter before": _te("xchunked"),
    "TE, quoted": _te('"chunked"'),
    "TE, a vertical tab": _te("\x0bchunked"),
    "TE, a NUL behind": _te("chunked\x00"),
    "TE, a blank before the colon": _te("chunked", "Transfer-Encoding :"),
    "TE, a blank before the name": _te("chunked", " Transfer-Encoding:"),
    "TE, an underscore": _te("chunked", "Transfer_Encoding:"),
    "TE, folded": _te("\r\n chunked"),
    "TE, behind a bare LF": _te("chunked", "X: y\nTransfer-Encoding:"),
    "TE, behind a bare CR": _te("chunked", "X: y\rTransfer-Encoding:"),
    "TE in HTTP/1.0": lambda host, marker: _te("chunked")(host, marker).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "CL twice": _post("Content-Length: 0\r\nContent-Length: {length}\r\n", lambda inner: inner),
    "CL twice, the other way": _post("Content-Length: {length}\r\nContent-Length: 0\r\n", lambda inner: inner),
    "CL, a list": _post("Content-Length: 0, {length}\r\n", lambda inner: inner),
    "CL, signed": _post("Content-Length: +{length}\r\n", lambda inner: inner),
    "CL, negative": _post("Content-Length: -1\r\n", lambda inner: inner),
    "CL, hexadecimal": _post("Content-Length: 0x10\r\n", lambda inner: inner),
    "CL, beyond 64 bits": _post("Content-Length: 18446744073709551616\r\n", lambda inner: inner),
    "CL, a blank before the colon": _post("Content-Length : {length}\r\n", lambda inner: inner),
    "CL, folded": _post("Content-Length:\r\n {length}\r\n", lambda inner: inner),
    "CL, a bare LF before": _post("X: y\nContent-Length: {length}\r\n", lambda inner: inner),
    "chunk size, hexadecimal by name": _chunks(lambda inner: f"0x{len(inner):x}\r\n{inner}\r\n0\r\n\r\n"),
    "chunk size, negative": _chunks(lambda inner: f"-1\r\n{inner}\r\n0\r\n\r\n"),
    "chunk size, beyond 64 bits": _chunks(lambda inner: f"10000000000000000\r\n\r\n{inner}0\r\n\r\n"),
    "chunk size, a bare LF behind": _chunks(lambda inner: f"{len(inner):x}\n{inner}\r\n0\r\n\r\n"),
    "chunk size, a bare CR in its extension": _chunks(lambda inner: f"{len(inner):x};a\rb\r\n{inner}\r\n0\r\n\r\n"),
    "chunk longer than it says": _chunks(lambda inner: f"1\r\n{inner}\r\n0\r\n\r\n"),
    "chunk end missing": _chunks(lambda inner: f"1\r\nx0\r\n\r\n{inner}"),
    "an extension with a request in it": _chunks(lambda inner: "1;" + inner.replace("\r\n", "\n") + "\r\nx\r\n0\r\n\r\n"),
    "a trailer with a request in it": _chunks(lambda inner: "0\r\n" + inner),
    "a header with a request in it": _post("X: y\r\n\tz\n\nGET / HTTP/1.1\r\n", lambda inner: inner),
    "GET with a body": lambda host, marker: (
        f"GET /health/live HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(INNER.format(host=host, marker=marker))}\r\n\r\n"
        + INNER.format(host=host, marker=marker)
    ).encode(),
    "a body refused for its type": _post(
        "Content-Length: {length}\r\nContent-Encoding: gzip\r\n", lambda inner: inner
    ),
    "a body refused for its size": _post(
        "Content-Length: 900000000\r\n", lambda inner: inner
    ),
    "an upgrade to a websocket": _post(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nContent-Length: {length}\r\n",
        lambda inner: inner,
    ),
    "a tunnel": lambda host, marker: (
        f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}\r\n\r\n" + INNER.format(host=host, marker=marker)
    ).encode(),
    "an upgrade that is none": _post(
        "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: {length}\r\n",
        lambda inner: inner,
    ),
    "an expectation": _post("Expect: 100-continue\r\nContent-Length: {length}\r\n", lambda inner: inner),
}  # fmt: skip


def exchanged(
    connection: socket.socket | ssl.SSLSocket, data: bytes, quiet_seconds: float = 1.0, *, in_pieces: bool = False
) -> bytes:
    """All that comes back for `data` until the other side closes or says nothing for a while.

    In pieces the first head goes alone, and is read before anything comes behind it.
    """
    connection.settimeout(quiet_seconds)
    received = b""
    head = data.find(b"\r\n\r\n") + 4 if in_pieces else 0
    try:
        if head:
            connection.sendall(data[:head])
            time.sleep(_READ_BY_THEN_SECONDS)
        connection.sendall(data[head:])
        while more := connection.recv(65_536):
            received += more
    except (TimeoutError, ConnectionError, ssl.SSLError):
        pass
    return received
