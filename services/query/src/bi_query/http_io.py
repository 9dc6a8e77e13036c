"""HTTP in and out for the handlers: arguments, bodies and disconnects read; results, documents and 304s written."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import BadRequest, PayloadTooLarge, QueryCancelled, UnsupportedMediaType
from .formats import MEDIA_TYPES, Format, negotiate
from .query_service import Result
from .rate_limit import Quota
from .unsent import LARGE_BYTES, Held, Unsent

MAX_QUERY_STRING_BYTES = 16_384
MAX_FIELDS = 100
CLIENT_GONE_STATUS = 499
_PIECE_BYTES = 128 * 1024
_VARY = (b"vary", b"Accept, Authorization, X-API-Key")
# What parse_qsl would quietly repair: a '%' that starts no escape. In a strict reader it is a mistake worth telling.
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")

_WATCH_AFTER_SECONDS = 0.2

_T = TypeVar("_T")


def header(scope: Scope, name: bytes) -> bytes:
    """All values of a header, joined; empty without one."""
    found = b""
    for key, value in scope["headers"]:
        if key == name:
            found = found + b"," + value if found else value
    return found


def query_pairs(scope: Scope) -> list[tuple[str, str]]:
    """The query string's name/value pairs, decoded. Raises `BadRequest`."""
    raw: bytes = scope["query_string"]
    if len(raw) > MAX_QUERY_STRING_BYTES:
        raise BadRequest("query_string_too_long", f"the query string is longer than {MAX_QUERY_STRING_BYTES} bytes")
    if not raw:
        return []
    try:
        text = raw.decode("utf-8")
        if _BAD_ESCAPE.search(text):
            raise ValueError("a '%' without two hexadecimal digits")
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError as error:  # UnicodeDecodeError is one
        raise BadRequest(
            "bad_query_string", f"the query string is not percent-encoded UTF-8 with at most {MAX_FIELDS} fields"
        ) from error


def arguments(scope: Scope) -> tuple[list[tuple[str, str]], Format]:
    """The query string's pairs without `format`, and the format to answer in. Raises `BadRequest`, `NotAcceptable`."""
    pairs = query_pairs(scope)
    formats = [value for name, value in pairs if name == "format"]
    if len(formats) > 1:
        raise BadRequest("repeated_parameter", "parameter 'format' is given more than once; give it once")
    fmt = negotiate(header(scope, b"accept").decode("latin-1"), formats[0] if formats else None)
    return [pair for pair in pairs if pair[0] != "format"], fmt


def wants_no_cache(scope: Scope) -> bool:
    """Whether the request's `Cache-Control` asks for a new answer."""
    control = header(scope, b"cache-control").lower()
    return b"no-cache" in control or b"no-store" in control


async def unless_gone(request: Request, asked: Coroutine[Any, Any, _T]) -> _T:
    """Await `asked`; cancel it, and with it the query, when the client hangs up. Raises `QueryCancelled` then.

    Watching takes a task: most answers are there before the first look, `_WATCH_AFTER_SECONDS` after the question.
    """
    loop, asker = asyncio.get_running_loop(), asyncio.current_task()
    assert asker is not None  # noqa: S101 - narrows the type; a coroutine runs in a task
    watchers: list[asyncio.Task[None]] = []
    gone = False

    async def watch() -> None:
        nonlocal gone
        await disconnected(request.receive)
        gone = True
        asker.cancel()

    timer = loop.call_later(_WATCH_AFTER_SECONDS, lambda: watchers.append(loop.create_task(watch())))
    try:
        return await asked
    except asyncio.CancelledError:
        if not gone or asker.uncancel() > 0:  # somebody else ends this request as well
            raise
        raise QueryCancelled("client_closed_request", "the client went away") from None
    finally:
        timer.cancel()
        for watcher in watchers:
            watcher.cancel()


async def disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    """Until the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def sql_body(request: Request, max_bytes: int) -> tuple[str, dict[str, object]]:
    """`{"sql": text, "params": {name: scalar}}` from the request's body.

    Raises `UnsupportedMediaType`, `PayloadTooLarge`, `BadRequest`.
    """
    return sql_and_params(await json_object(request, max_bytes))


def sql_and_params(document: Mapping[str, Any]) -> tuple[str, dict[str, object]]:
    """The members of `{"sql": text, "params": {name: scalar}}`. Raises `BadRequest`."""
    if not isinstance(document.get("sql"), str):
        raise BadRequest(
            "bad_body", 'send {"sql": "SELECT …", "params": {…}}; \'sql\' is text and is missing or something else'
        )
    if unknown := document.keys() - {"sql", "params"}:
        raise BadRequest("bad_body", f"unknown member {min(unknown)[:60]!r}; known are 'sql' and 'params'")
    if not is_clean(document["sql"]):
        raise BadRequest("bad_body", "'sql' holds a NUL character or half of a surrogate pair")
    params = document.get("params")
    params = {} if params is None else params
    if not isinstance(params, dict) or not all(is_scalar(value) for value in params.values()):
        raise BadRequest(
            "bad_body",
            "'params' must be an object of texts (no NUL), booleans, nulls and numbers (finite, integers up to 64 bits)",
        )
    return document["sql"], params


async def json_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """The JSON object in the request's body. Raises `UnsupportedMediaType`, `PayloadTooLarge`, `BadRequest`."""
    media = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media != "application/json":
        raise UnsupportedMediaType("not_json", f"send application/json, not {media[:60]!r}")
    body = await read_body(request, max_bytes)
    try:
        document = json.loads(body.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_repeats)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise BadRequest("bad_json", f"the body is not JSON in UTF-8: {_reason(error)}") from error
    if not isinstance(document, dict):
        raise BadRequest("bad_body", "the body is JSON, but not an object")
    return document


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The request's body, as it was sent: a packed one is refused, for what it unpacks to has no bound.

    Raises `UnsupportedMediaType`, `PayloadTooLarge`, and `QueryCancelled` when the client goes away meanwhile.
    """
    encoding = header(request.scope, b"content-encoding").decode("latin-1").strip().lower()
    if encoding not in ("", "identity"):
        detail = f"send the body without Content-Encoding, not as {encoding[:60]!r}"
        raise UnsupportedMediaType("packed_body", detail, headers=[(b"accept-encoding", b"identity")])
    declared = request.headers.get("content-length", "0")
    chunks: list[bytes] = []
    size = int(declared) if declared.isdecimal() and len(declared) < 19 else 0
    if size <= max_bytes:
        size = 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    break
                chunks.append(chunk)
        except ClientDisconnect:
            raise QueryCancelled("client_closed_request", "the client went away while sending") from None
    if size > max_bytes:
        raise PayloadTooLarge("body_too_large", f"the body is larger than {max_bytes} bytes")
    return b"".join(chunks)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    if isinstance(error, RecursionError):
        return "too deeply nested"
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)[:100]


def is_scalar(value: object) -> bool:
    """Whether a JSON value can be a parameter: null, a boolean, a clean text, a finite number of at most 64 bits."""
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    if isinstance(value, float):
        return math.isfinite(value)  # 1e999 reads as infinity
    return isinstance(value, str) and is_clean(value)


def is_clean(text: str) -> bool:
    """Whether a text has neither NUL characters nor halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate from a \ud800 escape
        return False
    return "\x00" not in text


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is given more than once")
    return members


def respond(scope: Scope, result: Result, quota: Quota, unsent: Unsent) -> Response:
    """The result with its freshness headers, or 304 when the client holds it already.

    Raises `Overloaded` for a large one that does not fit beside those being sent.
    """
    passing = _passing(scope, result, quota)
    lasting = _lasting_headers(*_what_lasts(result))
    if _matches(header(scope, b"if-none-match"), result.served.entry.etag):
        return Ready(b"", 304, [*lasting, *passing])
    entry, answer = result.served.entry, result.served.answer
    size = entry.raw_bytes if answer is None else len(answer.encoded.body)
    headers = [*lasting, *passing, (b"content-length", b"%d" % size)]

    def body() -> bytes:
        return entry.raw() if answer is None else answer.encoded.body

    if size >= LARGE_BYTES:
        return InPieces(unsent.hold(entry.etag, size, body, None if answer is None else answer.claim), headers)
    return Ready(body(), 200, headers)


class Whole(NamedTuple):
    """An answer that can be written as it is: status, the lines of its head (each ended), body."""

    status: int
    head: bytes
    body: bytes


def respond_whole(scope: Scope, result: Result, quota: Quota) -> Whole:
    """The same answer as `respond` gives, for a connection that takes bytes."""
    head = _lasting_lines(*_what_lasts(result)) + lines(_passing(scope, result, quota))
    if _matches(header(scope, b"if-none-match"), result.served.entry.etag):
        return Whole(304, head, b"")
    body = result.served.entry.raw()
    return Whole(200, b"%scontent-length: %d\r\n" % (head, len(body)), body)


def lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as they stand in an answer of HTTP/1.1."""
    return b"".join([b"%s: %s\r\n" % pair for pair in headers])


def _what_lasts(result: Result) -> tuple[Format, str, str, int, bool]:
    entry = result.served.entry
    return result.fmt, result.snapshot_id, entry.etag, entry.row_count, entry.truncated


def _lasting_headers(
    fmt: Format, snapshot_id: str, etag: str, row_count: int, truncated: bool
) -> list[tuple[bytes, bytes]]:
    """The headers that are the same as long as an answer is."""
    return [
        (b"content-type", MEDIA_TYPES[fmt].encode()),
        (b"etag", etag.encode()),
        (b"x-data-version", snapshot_id.encode()),
        (b"x-row-count", b"%d" % row_count),
        (b"x-truncated", b"true" if truncated else b"false"),
        _VARY,
    ]


@lru_cache(maxsize=8192)
def _lasting_lines(fmt: Format, snapshot_id: str, etag: str, row_count: int, truncated: bool) -> bytes:
    return lines(_lasting_headers(fmt, snapshot_id, etag, row_count, truncated))


def _passing(scope: Scope, result: Result, quota: Quota) -> list[tuple[bytes, bytes]]:
    """The headers that are of this moment and this client."""
    served, entry, now = result.served, result.served.entry, time.time()
    remaining = max(0, int(entry.fresh_until - now))
    return [
        (b"x-cache", served.result.encode()),
        (b"age", b"%d" % max(0, now - entry.created_at)),
        (
            b"cache-control",
            b"private, max-age=%d, stale-while-revalidate=%d" % (remaining, result.freshness.stale_seconds),
        ),
        (b"server-timing", log_result(scope, result)),
        *quota.headers(),
    ]


def log_result(scope: Scope, result: Result) -> bytes:
    """Add how a result was come by to the request's line; the same as a `Server-Timing` value."""
    served, log = result.served, scope["state"]["log"]
    log.update(snapshot=result.snapshot_id, cache=served.result, tier=served.tier, rows=served.entry.row_count)
    if served.answer is None or served.result not in ("miss", "bypass", "coalesced"):
        return b"cache;desc=" + served.tier.encode()
    queue, engine = served.answer.queue_seconds, served.answer.engine_seconds
    encode = served.answer.encoded.encode_seconds
    log.update(queue_seconds=round(queue, 6), engine_seconds=round(engine, 6), encode_seconds=round(encode, 6))
    return f"queue;dur={queue * 1000:.2f}, engine;dur={engine * 1000:.2f}, encode;dur={encode * 1000:.2f}".encode()


def _matches(if_none_match: bytes, etag: str) -> bool:
    if not if_none_match:
        return False
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in if_none_match.decode("latin-1").split(","))


class Ready(Response):
    """A response whose bytes and headers are complete: sent as they are."""

    def __init__(self, body: bytes, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status_code = status
        self.body = body
        self.raw_headers = headers
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})


class InPieces(Ready):
    """A large answer, given to the transport as fast as its client reads and no faster."""

    def __init__(self, held: Held, headers: list[tuple[bytes, bytes]]) -> None:
        super().__init__(b"", 200, headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send, unless the client goes away or is cut off; that is counted as 499."""
        body = self._held.body
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for start in range(0, len(body), _PIECE_BYTES):
                # Copied: what the transport still has of it must not keep the whole answer in memory.
                piece = body[start : start + _PIECE_BYTES]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                if gone.done():
                    scope["state"]["counted_status"] = CLIENT_GONE_STATUS
                    return
            # Waits until nearly all has left, and with it the claim on the budget.
            await send({"type": "http.response.body", "body": b""})
            if gone.done() and not gone.cancelled():
                scope["state"]["counted_status"] = CLIENT_GONE_STATUS
        finally:
            gone.cancel()


def json_answer(document: object, quota: Quota | None = None, *extra: tuple[bytes, bytes]) -> Response:
    """A JSON document that no cache may keep."""
    body = orjson.dumps(document, default=str)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *extra]
    return Ready(body, 200, [*headers, (b"cache-control", b"no-store"), *(quota.headers() if quota else [])])
