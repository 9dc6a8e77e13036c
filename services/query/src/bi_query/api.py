"""The routes. A handler reads as one sentence: who, how often, what, from where, as bytes."""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import orjson
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .auth import Principal
from .cache import Cache
from .errors import BadRequest, Overloaded, PayloadTooLarge, QueryCancelled, UnsupportedMediaType
from .formats import MEDIA_TYPES, Format, negotiate
from .metrics import AD_HOC, UNMATCHED_ENDPOINT, Metrics
from .query_service import Bound, QueryService, Result
from .rate_limit import ClientLimiter, Quota
from .settings import Settings
from .snapshot import SnapshotStore

QUERIES = "/api/v1/queries"
QUERY = "/api/v1/queries/{name}"
AD_HOC_QUERY = "/api/v1/query"
TABLES = "/api/v1/tables"
CACHE = "/api/v1/cache"
LIVE, READY, METRICS = "/health/live", "/health/ready", "/metrics"
DOCS, OPENAPI = "/docs", "/openapi.json"
_FIXED = frozenset({QUERIES, AD_HOC_QUERY, TABLES, CACHE, LIVE, READY, METRICS, DOCS, OPENAPI})
_VARY = (b"vary", b"Accept, Authorization, X-API-Key")
_MAX_QUERY_STRING_BYTES = 16_384
_REMEMBERED_QUESTIONS = 8192

_T = TypeVar("_T")


def endpoint_of(path: str) -> str:
    """The route template of a path: a bounded label."""
    if path in _FIXED:
        return path
    if path.startswith(QUERIES + "/") and "/" not in path[len(QUERIES) + 1 :] and len(path) > len(QUERIES) + 1:
        return QUERY
    return UNMATCHED_ENDPOINT


@dataclass(frozen=True)
class Rooms:
    """What the handlers need."""

    settings: Settings
    metrics: Metrics
    store: SnapshotStore
    cache: Cache
    limiter: ClientLimiter
    service: QueryService


class Api:
    """The handlers, as Starlette endpoints."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._questions: OrderedDict[tuple[str, bytes, bytes], tuple[Bound, Format]] = OrderedDict()

    async def named_query(self, request: Request) -> Response:
        """A named query's result."""
        principal, quota = self._admit(request.scope)
        bound, fmt = self._named_question(request.scope)
        asked = self._rooms.service.named(bound, fmt, principal.scope, bypass=_wants_no_cache(request.scope))
        return _respond(request.scope, await unless_gone(request, asked), quota)

    def named_hit(self, scope: Scope) -> Response | None:
        """The answer to a named query, if this process holds a fresh one; never waits. What it spent is remembered."""
        principal, quota = self._admit(scope)
        bound, fmt = self._named_question(scope)
        if _wants_no_cache(scope):
            return None
        result = self._rooms.service.named_if_fresh(bound, fmt, principal.scope)
        return None if result is None else _respond(scope, result, quota)

    def _named_question(self, scope: Scope) -> tuple[Bound, Format]:
        """Which query with which values in which format; remembered by what was sent."""
        memo = (scope["path"], scope["query_string"], _header(scope, b"accept"))
        question = self._questions.get(memo)
        if question is None:
            pairs, fmt = _arguments(scope)
            question = self._rooms.service.bind(scope["path"].rpartition("/")[2], pairs), fmt
            self._questions[memo] = question
            if len(self._questions) > _REMEMBERED_QUESTIONS:
                self._questions.popitem(last=False)
        return question

    async def ad_hoc(self, request: Request) -> Response:
        """An ad-hoc SELECT's result."""
        principal, quota = self._admit(request.scope)
        pairs, fmt = _arguments(request.scope)
        if pairs:
            raise BadRequest("unknown_parameter", f"unknown parameter {pairs[0][0][:60]!r}; only 'format' is read here")
        sql, params = await _sql_body(request, self._rooms.settings.max_body_bytes)
        asked = self._rooms.service.ad_hoc(sql, params, fmt, principal.scope, bypass=_wants_no_cache(request.scope))
        return _respond(request.scope, await unless_gone(request, asked), quota)

    async def queries(self, request: Request) -> Response:
        """The catalogue."""
        _, quota = self._admit(request.scope)
        listed = [query.describe() for query in self._rooms.service.catalogue.queries.values()]
        return _json({"queries": listed}, quota)

    async def tables(self, request: Request) -> Response:
        """The snapshot's relations."""
        _, quota = self._admit(request.scope)
        snapshot = self._rooms.store.current
        relations = [{"name": name, **relation} for name, relation in snapshot.manifest.relations.items()]
        document = {"snapshot_id": snapshot.id, "published_at": formatdate(snapshot.published_at, usegmt=True)}
        return _json({**document, "tables": relations}, quota, (b"x-data-version", snapshot.id.encode()))

    async def invalidate(self, request: Request) -> Response:
        """Forget cached answers by query name or by glob."""
        _, quota = self._admit(request.scope)
        given = dict(request.query_params)
        if len(request.query_params.multi_items()) != 1 or not given.keys() <= {"query", "pattern"}:
            raise BadRequest("bad_parameter", "give exactly one of query=NAME or pattern=GLOB ('*' and '?')")
        if "query" in given:
            name = given["query"]
            if name != AD_HOC:
                self._rooms.service.query(name)
            memory, shared = await self._rooms.cache.invalidate(f"{name}/*", "query")
        else:
            if not 0 < len(given["pattern"]) <= 500:
                raise BadRequest("bad_parameter", "pattern must have 1 to 500 characters")
            memory, shared = await self._rooms.cache.invalidate(given["pattern"], "pattern")
        redis = "off" if not self._rooms.cache.has_redis else "pending" if shared is None else "done"
        return _json({**given, "invalidated": {"memory": memory, "redis": shared}, "redis": redis}, quota)

    async def live(self, request: Request) -> Response:
        """The process answers."""
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """A snapshot is being served. Redis does not count: without it the service is slower, not gone."""
        if not self._rooms.store.is_ready:
            raise Overloaded(
                "no_snapshot", "no data has been published yet; run `bi-query publish`", retry_after_seconds=5
            )
        return _json(
            {"status": "ok", "snapshot_id": self._rooms.store.current.id, "redis": self._rooms.cache.redis_state}
        )

    async def metrics(self, request: Request) -> Response:
        """Prometheus exposition."""
        encoder, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encoder(self._rooms.metrics.registry), headers={"content-type": content_type})

    def _admit(self, scope: Scope) -> tuple[Principal, Quota]:
        """Who asks, and one request off their quota (once per request, whichever room asks first)."""
        state = scope["state"]
        principal: Principal = state["principal"]
        quota: Quota | None = state.get("quota")
        if quota is None:
            quota = state["quota"] = self._rooms.limiter.spend(state["endpoint"], principal.client)
        return principal, quota


class HotPath:
    """ASGI layer before the router: answers fresh named queries from memory, passes everything else on.

    A hit needs no routing, no request object and no await; going through the framework would cost more than the answer.
    """

    def __init__(self, app: ASGIApp, named_hit: Callable[[Scope], Response | None]) -> None:
        self._app = app
        self._named_hit = named_hit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on."""
        if scope["type"] == "http" and scope["method"] == "GET" and scope["state"]["endpoint"] == QUERY:
            response = self._named_hit(scope)
            if response is not None:
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _header(scope: Scope, name: bytes) -> bytes:
    """All values of a header, joined; empty without one."""
    found = b""
    for key, value in scope["headers"]:
        if key == name:
            found = found + b"," + value if found else value
    return found


def _arguments(scope: Scope) -> tuple[list[tuple[str, str]], Format]:
    """The query string's pairs without `format`, and the format to answer in."""
    raw: bytes = scope["query_string"]
    if len(raw) > _MAX_QUERY_STRING_BYTES:
        raise BadRequest("query_string_too_long", f"the query string is longer than {_MAX_QUERY_STRING_BYTES} bytes")
    text = raw.decode("latin-1")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=100) if text else []
    except (UnicodeDecodeError, ValueError) as error:
        raise BadRequest(
            "bad_query_string", "the query string is not percent-encoded UTF-8 with at most 100 fields"
        ) from error
    formats = [value for name, value in pairs if name == "format"]
    if len(formats) > 1:
        raise BadRequest("repeated_parameter", "parameter 'format' is given more than once; give it once")
    fmt = negotiate(_header(scope, b"accept").decode("latin-1"), formats[0] if formats else None)
    return [pair for pair in pairs if pair[0] != "format"], fmt


def _wants_no_cache(scope: Scope) -> bool:
    control = _header(scope, b"cache-control")
    return b"no-cache" in control or b"no-store" in control


async def unless_gone(request: Request, asked: Coroutine[Any, Any, _T]) -> _T:
    """Await `asked`; cancel it, and with it the query, when the client hangs up. Raises `QueryCancelled` then."""
    work = asyncio.ensure_future(asked)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise QueryCancelled("client_closed_request", "the client went away")
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _sql_body(request: Request, max_bytes: int) -> tuple[str, dict[str, object]]:
    """`{"sql": text, "params": {name: scalar}}` from the request's body."""
    media = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media != "application/json":
        raise UnsupportedMediaType("not_json", f"send application/json, not {media[:60]!r}")
    body = await _read_body(request, max_bytes)
    try:
        document = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise BadRequest("bad_json", f"the body is not JSON in UTF-8: {type(error).__name__}") from error
    if not isinstance(document, dict) or not isinstance(document.get("sql"), str):
        raise BadRequest(
            "bad_body", 'send {"sql": "SELECT …", "params": {…}}; \'sql\' is text and is missing or something else'
        )
    if unknown := document.keys() - {"sql", "params"}:
        raise BadRequest("bad_body", f"unknown member {min(unknown)[:60]!r}; known are 'sql' and 'params'")
    params = document.get("params") or {}
    if not isinstance(params, dict) or not all(_is_scalar(value) for value in params.values()):
        raise BadRequest("bad_body", "'params' must be an object of numbers, texts, booleans or nulls")
    return document["sql"], params


async def _read_body(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    chunks: list[bytes] = []
    size = int(declared) if declared.isdigit() and len(declared) < 19 else 0
    if size <= max_bytes:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                break
            chunks.append(chunk)
    if size > max_bytes:
        raise PayloadTooLarge("body_too_large", f"the body is larger than {max_bytes} bytes")
    return b"".join(chunks)


def _is_scalar(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return -(2**63) <= value < 2**64
    if isinstance(value, str):
        return "\x00" not in value and _is_encodable(value)
    return value is None or isinstance(value, (float, bool))


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate from a \ud800 escape
        return False
    return True


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _respond(scope: Scope, result: Result, quota: Quota) -> Response:
    """The result with its freshness headers, or 304 when the client holds it already."""
    served, entry = result.served, result.served.entry
    now = time.time()
    remaining = max(0, int(entry.fresh_until - now))
    headers = [
        (b"content-type", MEDIA_TYPES[result.fmt].encode()),
        (b"x-cache", served.result.encode()),
        (b"age", b"%d" % max(0, now - entry.created_at)),
        (b"etag", entry.etag.encode()),
        (
            b"cache-control",
            b"private, max-age=%d, stale-while-revalidate=%d" % (remaining, result.freshness.stale_seconds),
        ),
        (b"x-data-version", result.snapshot_id.encode()),
        (b"x-row-count", b"%d" % entry.row_count),
        (b"x-truncated", b"true" if entry.truncated else b"false"),
        _VARY,
        *quota.headers(),
    ]
    log = scope["state"]["log"]
    log.update(
        query=result.query, snapshot=result.snapshot_id, cache=served.result, tier=served.tier, rows=entry.row_count
    )
    if served.answer is not None and served.result in ("miss", "bypass", "coalesced"):
        queue, engine = served.answer.queue_seconds, served.answer.engine_seconds
        encode = served.answer.encoded.encode_seconds
        timing = f"queue;dur={queue * 1000:.2f}, engine;dur={engine * 1000:.2f}, encode;dur={encode * 1000:.2f}"
        headers.append((b"server-timing", timing.encode()))
        log.update(queue_seconds=round(queue, 6), engine_seconds=round(engine, 6), encode_seconds=round(encode, 6))
    else:
        headers.append((b"server-timing", b"cache;desc=" + served.tier.encode()))
    if _matches(_header(scope, b"if-none-match"), entry.etag):
        return _Ready(b"", 304, headers)
    body = entry.raw()
    headers.append((b"content-length", b"%d" % len(body)))
    return _Ready(body, 200, headers)


def _matches(if_none_match: bytes, etag: str) -> bool:
    if not if_none_match:
        return False
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in if_none_match.decode("latin-1").split(","))


class _Ready(Response):
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


def _json(document: object, quota: Quota | None = None, *extra: tuple[bytes, bytes]) -> Response:
    body = orjson.dumps(document, default=str)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *extra]
    return _Ready(body, 200, [*headers, (b"cache-control", b"no-store"), *(quota.headers() if quota else [])])
