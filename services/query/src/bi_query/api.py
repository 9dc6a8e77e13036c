"""The routes. A handler reads as one sentence: who, how often, what, from where, as bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from email.utils import formatdate

from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .access import Principal, Role
from .auth import Gate
from .cache import Cache
from .departure import Departure
from .errors import BadRequest, Overloaded
from .formats import Format
from .http_io import (
    Ready,
    Whole,
    arguments,
    header,
    json_answer,
    query_pairs,
    respond,
    respond_whole,
    sql_body,
    unless_gone,
    wants_no_cache,
)
from .metrics import AD_HOC, UNMATCHED_ENDPOINT, Metrics
from .query_service import Bound, QueryService
from .rate_limit import Quota
from .settings import Settings
from .snapshot import SnapshotStore
from .unsent import Unsent

QUERIES = "/api/v1/queries"
QUERY = "/api/v1/queries/{name}"
AD_HOC_QUERY = "/api/v1/query"
TABLES = "/api/v1/tables"
CACHE = "/api/v1/cache"
PUBLISH = "/api/v1/publish"
CHAT = "/api/v1/chat"
MCP = "/mcp"
LIVE, READY, METRICS = "/health/live", "/health/ready", "/metrics"
DOCS, OPENAPI = "/docs", "/openapi.json"
_FIXED = frozenset({QUERIES, AD_HOC_QUERY, TABLES, CACHE, PUBLISH, CHAT, MCP, LIVE, READY, METRICS, DOCS, OPENAPI})
LIMITED = frozenset({QUERY, QUERIES, AD_HOC_QUERY, TABLES, CACHE, PUBLISH, CHAT, MCP})
"""Route templates that cost a client's quota; health, metrics and documentation are free."""
_REMEMBERED_QUESTIONS = 8192
_REMEMBERED_QUESTION_BYTES = 1024


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
    gate: Gate
    service: QueryService
    departure: Departure
    unsent: Unsent


class Api:
    """The handlers, as Starlette endpoints."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._questions: OrderedDict[tuple[str, bytes, bytes], tuple[Bound, Format]] = OrderedDict()

    async def named_query(self, request: Request) -> Response:
        """A named query's result."""
        principal, quota = self._admit(request.scope)
        bound, fmt = self._named_question(request.scope)
        asked = self._rooms.service.named(bound, fmt, principal, bypass=wants_no_cache(request.scope))
        return respond(request.scope, await unless_gone(request, asked), quota, self._rooms.unsent)

    def named_hit(self, scope: Scope) -> Whole | None:
        """The answer to a named query, if this process holds a fresh one; never waits. What it spent is remembered.

        A hit needs no routing, no task and no await; going through the framework would cost more than the answer.
        """
        principal, quota = self._admit(scope)
        bound, fmt = self._named_question(scope)
        if wants_no_cache(scope):
            return None
        result = self._rooms.service.named_if_fresh(bound, fmt, principal)
        return None if result is None else respond_whole(scope, result, quota)

    def _named_question(self, scope: Scope) -> tuple[Bound, Format]:
        """Which query with which values in which format; remembered by what was sent."""
        memo = (scope["path"], scope["query_string"], header(scope, b"accept"))
        question = self._questions.get(memo)
        if question is None:
            pairs, fmt = arguments(scope)
            question = self._rooms.service.bind(scope["path"].rpartition("/")[2], pairs), fmt
            if len(scope["path"]) + len(memo[1]) + len(memo[2]) <= _REMEMBERED_QUESTION_BYTES:
                self._questions[memo] = question
            if len(self._questions) > _REMEMBERED_QUESTIONS:
                self._questions.popitem(last=False)
        scope["state"]["log"]["query"] = question[0].query.name
        scope["state"]["audit"]["params"] = question[0].text
        return question

    async def ad_hoc(self, request: Request) -> Response:
        """An ad-hoc SELECT's result."""
        principal, quota = self._admit(request.scope, Role.ANALYST)
        pairs, fmt = arguments(request.scope)
        if pairs:
            raise BadRequest("unknown_parameter", f"unknown parameter {pairs[0][0][:60]!r}; only 'format' is read here")
        request.scope["state"]["log"]["query"] = AD_HOC
        sql, params = await sql_body(request, self._rooms.settings.max_body_bytes)
        request.scope["state"]["audit"].update(sql=sql, params=params)
        asked = self._rooms.service.ad_hoc(sql, params, fmt, principal, bypass=wants_no_cache(request.scope))
        return respond(request.scope, await unless_gone(request, asked), quota, self._rooms.unsent)

    async def queries(self, request: Request) -> Response:
        """The catalogue."""
        _, quota = self._admit(request.scope)
        listed = [query.describe() for query in self._rooms.service.catalogue.queries.values()]
        return json_answer({"queries": listed}, quota)

    async def tables(self, request: Request) -> Response:
        """The snapshot's relations."""
        principal, quota = self._admit(request.scope, Role.ANALYST)
        snapshot = self._rooms.store.current
        document = {"snapshot_id": snapshot.id, "published_at": formatdate(snapshot.published_at, usegmt=True)}
        tables = self._rooms.service.relations(principal)
        return json_answer({**document, "tables": tables}, quota, (b"x-data-version", snapshot.id.encode()))

    async def publish_status(self, request: Request) -> Response:
        """How the last publish went, and what is served."""
        _, quota = self._admit(request.scope, Role.ADMIN)
        store = self._rooms.store
        served = (
            {"snapshot_id": store.current.id, "published_at": store.current.published_at} if store.is_ready else None
        )
        document = {
            "serving": served,
            "last_publish": asdict(store.publish_status) if store.publish_status else None,
            "load_failure": store.failure or None,
        }
        return json_answer(document, quota)

    async def invalidate(self, request: Request) -> Response:
        """Forget cached answers by query name or by glob."""
        _, quota = self._admit(request.scope, Role.ADMIN)
        pairs = query_pairs(request.scope)
        given = dict(pairs)
        if len(pairs) != 1 or not given.keys() <= {"query", "pattern"}:
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
        return json_answer({**given, "invalidated": {"memory": memory, "redis": shared}, "redis": redis}, quota)

    async def live(self, request: Request) -> Response:
        """The process answers."""
        return json_answer({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """A snapshot is being served, and no end is in sight. Redis does not count: without it the service is slower."""
        if self._rooms.departure.is_announced:
            raise Overloaded("shutdown", "this replica is stopping; ask another", retry_after_seconds=1)
        if not self._rooms.store.is_ready:
            raise Overloaded(
                "no_snapshot", "no data has been published yet; run `bi-query publish`", retry_after_seconds=5
            )
        return json_answer(
            {"status": "ok", "snapshot_id": self._rooms.store.current.id, "redis": self._rooms.cache.redis_state}
        )

    async def metrics(self, request: Request) -> Response:
        """Prometheus exposition."""
        encoder, content_type = choose_encoder(request.headers.get("accept", ""))
        body = encoder(self._rooms.metrics.registry)
        length = b"%d" % len(body)
        return Ready(body, 200, [(b"content-type", content_type.encode()), (b"content-length", length)])

    def _admit(self, scope: Scope, role: Role = Role.READER) -> tuple[Principal, Quota]:
        return self._rooms.gate.admit(scope, role)


class NamedQueries:
    """ASGI layer before the router: answers GETs of named queries, passes everything else on.

    They need the request, to see their client leave, and nothing else of the framework, which would cost as much again.
    """

    def __init__(self, app: ASGIApp, handlers: Callable[[], Api]) -> None:
        self._app = app
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on."""
        if scope["type"] == "http" and scope["method"] == "GET" and scope["state"]["endpoint"] == QUERY:
            response = await self._handlers().named_query(Request(scope, receive))
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)
