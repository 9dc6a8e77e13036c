"""Wiring and lifespan, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import duckdb
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from . import __version__, api, openapi
from .audit import AuditLog
from .auth import Authenticator, Gate
from .cache import Cache
from .catalogue import Catalogue
from .chat.budget import TokenBudget
from .chat.chat import ChatService
from .chat.memory import PlanMemory
from .chat.room import ChatRoom
from .departure import Departure, end
from .engine import Engine
from .errors import ConfigurationError, MethodNotAllowed, NotFound, ProblemError
from .faults import FaultInjection
from .http_io import Whole
from .key_ring import KeyRing
from .metrics import Metrics
from .query_service import QueryService
from .rate_limit import ClientLimiter
from .redis_link import Link
from .settings import Settings, available_memory_bytes
from .snapshot import SnapshotStore
from .telemetry import Telemetry, no_memory, send_problem

if TYPE_CHECKING:
    from .chat.model import LanguageModel

_LEAST_ENGINE_BYTES = 4 * 1024 * 1024
Handler = Callable[[Request], Awaitable[Response]]


def create_app(settings: Settings, catalogue: Catalogue, departure: Departure | None = None) -> ASGIApp:
    """The service as an ASGI application. Opens nothing before its lifespan starts. `departure`: how it hears of its end."""
    departure = departure or Departure()
    metrics = Metrics(version=__version__, duckdb_version=duckdb.__version__)
    metrics.memory_limit.set(available_memory_bytes())
    if unknown := set(settings.rate_limit_routes) - api.LIMITED:
        raise ConfigurationError(
            f"BI_RATE_LIMIT_ROUTES: no limited route {sorted(unknown)[0]!r}; there are {', '.join(sorted(api.LIMITED))}"
        )
    settings.llm_api_key()  # a file that cannot be read stops the start with a sentence, here and not in the lifespan
    if min(settings.named_memory_bytes, settings.ad_hoc_memory_bytes) < _LEAST_ENGINE_BYTES:
        raise ConfigurationError(
            f"settings: {settings.named_memory_bytes} bytes of memory would be left for named queries and"
            f" {settings.ad_hoc_memory_bytes} for each ad-hoc query; at least {_LEAST_ENGINE_BYTES} are needed. See"
            " BI_ENGINE_MEMORY_BYTES, BI_AD_HOC_SHARE and BI_AD_HOC_MAX_RUNNING_QUERIES"
        )
    ring = KeyRing(settings.keys_file, catalogue.policies, metrics)
    audit = _audit_log(settings, metrics)
    # No redirects to a path without its slash: they are no answer of this API's contract, and they trust the Host header.
    app = FastAPI(
        lifespan=_lifespan(settings, catalogue, metrics, departure, ring, audit),
        redirect_slashes=False,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(ProblemError, _problem)
    app.add_exception_handler(MemoryError, _no_memory)
    app.add_exception_handler(HTTPException, _framework_refusal)
    _add_documents(app, catalogue)
    asking = [("GET", api.QUERY), ("POST", api.AD_HOC_QUERY), ("GET", api.CHAT), ("POST", api.CHAT)]
    asking += [("POST", api.MCP)] if settings.mcp else []
    metrics.prepare(catalogue.queries, [("GET", api.QUERIES), ("GET", api.TABLES)], asking)

    # The handlers exist only while the lifespan runs; the short ways find them on the application's state.
    def handlers() -> api.Api:
        return app.state.handlers  # type: ignore[no-any-return]

    def named_hit(scope: Scope) -> Whole | None:
        return handlers().named_hit(scope)

    inner: ASGIApp = api.NamedQueries(app, handlers)
    return Telemetry(
        FaultInjection(inner) if settings.fault_injection else inner,
        identify=Authenticator(ring, settings.trusted_proxies).identify,
        metrics=metrics,
        endpoint_of=api.endpoint_of,
        audit=audit,
        at_once=None if settings.fault_injection else (api.QUERY, named_hit),
    )


def _audit_log(settings: Settings, metrics: Metrics) -> AuditLog | None:
    if settings.audit_log is None:
        return None
    return AuditLog(settings.audit_log, settings.audit_max_bytes, settings.audit_files_kept, metrics)


def _lifespan(
    settings: Settings,
    catalogue: Catalogue,
    metrics: Metrics,
    departure: Departure,
    ring: KeyRing,
    audit: AuditLog | None,
) -> Callable[[FastAPI], Any]:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        ring.load()
        store, cache, engine = SnapshotStore(settings, metrics), Cache(settings, metrics), Engine(settings, metrics)
        limiter = ClientLimiter(settings, metrics)
        service = QueryService(catalogue, store, cache, engine, metrics)
        gate = Gate(limiter, metrics)
        app.state.handlers = api.Api(
            api.Rooms(settings, metrics, store, cache, gate, service, departure, engine.unsent)
        )
        _add_routes(app, app.state.handlers)
        rooms = contextlib.AsyncExitStack()
        await rooms.enter_async_context(_add_agents(app, settings, gate, service, store))
        model, plans = await rooms.enter_async_context(_language_model(settings, metrics))
        chat = ChatRoom(gate, ChatService(settings, metrics, service, store, model, plans), settings.max_body_bytes)
        app.add_route(api.CHAT, chat.ask, methods=["GET", "POST"], include_in_schema=False)
        await store.refresh()
        cache.start()
        tasks = [
            asyncio.create_task(store.watch()),
            asyncio.create_task(_cut_off(engine, model, departure, settings.shutdown_grace_seconds)),
            asyncio.create_task(ring.watch()),
        ]
        if settings.redis_url:
            tasks.append(asyncio.create_task(limiter.share()))
        # What exists now lives as long as the process: the collector need not look at it again at every full pass.
        gc.collect()
        gc.freeze()
        try:
            yield
        finally:
            await engine.close(settings.shutdown_grace_seconds)
            await rooms.aclose()
            await end(tasks)
            await cache.close()
            service.close()
            store.close()
            if audit is not None:
                audit.close()

    return lifespan


def _add_agents(
    app: FastAPI, settings: Settings, gate: Gate, service: QueryService, store: SnapshotStore
) -> contextlib.AbstractAsyncContextManager[None]:
    """The route for agents, and what must be entered while it is served."""
    if not settings.mcp:
        app.add_route(api.MCP, _no_agents, methods=["POST"], include_in_schema=False)
        return contextlib.nullcontext()
    from .mcp_room import McpRoom  # noqa: PLC0415 - takes two thirds as long as all other imports: who needs it pays

    room = McpRoom(settings, gate, service, store)
    app.add_route(api.MCP, room.exchange, methods=["POST"], include_in_schema=False)
    return room.running()


async def _no_agents(request: Request) -> Response:
    raise NotFound("mcp_off", "MCP is switched off here; who runs this service switches it on with BI_MCP=true")


@contextlib.asynccontextmanager
async def _language_model(
    settings: Settings, metrics: Metrics
) -> AsyncIterator[tuple[LanguageModel | None, PlanMemory]]:
    """The model that questions are put to, if one is configured, and what it chose before."""
    if settings.llm_base_url is None:
        yield None, PlanMemory()
        return
    from .chat.model import LanguageModel  # noqa: PLC0415 - its client takes a second to import: who needs it pays

    link = Link(settings, metrics) if settings.redis_url else None
    budget = TokenBudget(settings, metrics, link)
    model = LanguageModel(settings, metrics, budget)
    sharing = asyncio.create_task(budget.share())
    try:
        yield model, PlanMemory(link)
    finally:
        await model.close()
        await end([sharing])
        await budget.close()
        if link is not None:
            await link.close()


async def _cut_off(engine: Engine, model: LanguageModel | None, departure: Departure, grace_seconds: float) -> None:
    """Refuse, with 503, what still runs when the grace is over. The server would only cut the connections."""
    await departure.begun()
    await asyncio.sleep(grace_seconds)
    if model is not None:
        await model.close()
    await engine.close(0)


def _add_routes(app: FastAPI, handlers: api.Api) -> None:
    # Plain Starlette routes: the handlers read their own parameters (declared in the catalogue, not in Python), so
    # FastAPI's per-request dependency solving would be paid for nothing on the hot path.
    routes: list[tuple[str, Handler, str]] = [
        (api.QUERY, handlers.named_query, "GET"),
        (api.AD_HOC_QUERY, handlers.ad_hoc, "POST"),
        (api.QUERIES, handlers.queries, "GET"),
        (api.TABLES, handlers.tables, "GET"),
        (api.CACHE, handlers.invalidate, "DELETE"),
        (api.PUBLISH, handlers.publish_status, "GET"),
        (api.LIVE, handlers.live, "GET"),
        (api.READY, handlers.ready, "GET"),
        (api.METRICS, handlers.metrics, "GET"),
    ]
    for path, handler, method in routes:
        app.add_route(path, handler, methods=[method], include_in_schema=False)


def _add_documents(app: FastAPI, catalogue: Catalogue) -> None:
    document = openapi.document(catalogue.queries.values())
    # A page of our own: Swagger UI comes from a CDN, and analysts in closed networks would see an empty page.
    page = files(__package__).joinpath("docs.html").read_text(encoding="utf-8")
    headers = {"content-security-policy": _page_policy(page), "x-content-type-options": "nosniff"}

    async def schema(_: Request) -> Response:
        return JSONResponse(document)

    async def docs(_: Request) -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    app.add_route(api.OPENAPI, schema, methods=["GET"], include_in_schema=False)
    app.add_route(api.DOCS, docs, methods=["GET"], include_in_schema=False)


def _page_policy(page: str) -> str:
    """Nothing from elsewhere, and of scripts and styles exactly those the page was shipped with."""
    sources = {}
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        text = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        sources[directive] = "'sha256-" + b64encode(sha256(text.encode()).digest()).decode() + "'"
    listed = "; ".join(f"{directive} {source}" for directive, source in sources.items())
    return (
        f"default-src 'none'; connect-src 'self'; {listed}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class _ProblemResponse(Response):
    """Sends a problem, with the quota headers of a request that got as far as being counted."""

    def __init__(self, problem: ProblemError) -> None:
        super().__init__(status_code=problem.status)
        self._problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_problem(self._problem, scope["state"], send)


async def _problem(request: Request, error: Exception) -> Response:
    if not isinstance(error, ProblemError) or error.status == 499:
        raise error
    return _ProblemResponse(error)


async def _no_memory(request: Request, _: Exception) -> Response:
    return _ProblemResponse(no_memory(request.scope["state"]))


async def _framework_refusal(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405 in our error shape."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        text = f"this route answers {allow}"
        return _ProblemResponse(MethodNotAllowed("method_not_allowed", text, headers=[(b"allow", allow.encode())]))
    return _ProblemResponse(NotFound("not_found", "no such route; GET /docs lists the API"))
