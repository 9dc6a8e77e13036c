"""`/mcp`: the same questions for agents, over the Model Context Protocol (the official SDK's streamable HTTP transport).

Every POST is a request of its own: no sessions, JSON answers, so any replica can take it and a lost connection costs
nothing. It passes the same gate as the API's requests, and a tool asks the same service. What the service refuses is a
tool's error, in the same words, for the model to read; what the gate refuses is an HTTP status with a JSON-RPC error.

Imported only when it is switched on: the SDK takes two thirds as long to import as the rest of the service.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from email.utils import formatdate
from typing import Any

import orjson
from mcp.server import Server, ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
)
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Scope

from . import __version__, mcp_tools
from .access import Principal, Role
from .auth import Gate
from .errors import ProblemError, QueryCancelled
from .formats import Limits
from .http_io import Ready, log_result, read_body, sql_and_params, unless_gone
from .metrics import AD_HOC
from .query_service import QueryService, Result
from .settings import Settings
from .snapshot import SnapshotStore
from .telemetry import problem_headers

logger = logging.getLogger(__name__)

_SERVER_ERROR = -32000  # JSON-RPC's first code for errors of the implementation's own
_Document = dict[str, Any]
_Run = Callable[[Scope, Principal, _Document], Awaitable[_Document]]


class McpRoom:
    """The endpoint."""

    def __init__(self, settings: Settings, gate: Gate, service: QueryService, store: SnapshotStore) -> None:
        self._gate, self._service, self._store = gate, service, store
        self._max_body_bytes = settings.max_body_bytes
        self._tools = mcp_tools.definitions(service.catalogue.queries)
        self._runs: dict[str, _Run] = {
            mcp_tools.LIST_QUERIES: self._list_queries,
            mcp_tools.RUN_QUERY: self._run_query,
            mcp_tools.LIST_TABLES: self._list_tables,
            mcp_tools.RUN_SQL: self._run_sql,
        }
        # One line a request is the request log's business.
        logging.getLogger("mcp").setLevel(logging.WARNING)
        server: Server[Any] = Server(
            "bi-query",
            version=__version__,
            title="BI Solution",
            instructions=mcp_tools.INSTRUCTIONS,
            get_tool_input_schema=lambda name: self._tools[name].input_schema if name in self._tools else None,
            on_list_tools=self._listed,
            on_call_tool=self._called,
        )
        self._manager = StreamableHTTPSessionManager(
            server,
            json_response=True,
            stateless=True,
            security_settings=_security(settings.mcp_hosts),
            max_request_body_size=settings.max_body_bytes,
        )

    def running(self) -> AbstractAsyncContextManager[None]:
        """What must be entered while requests are taken; leaving it ends those still in progress."""
        return self._manager.run()

    async def exchange(self, request: Request) -> Response:
        """One JSON-RPC message in, its answer out."""
        try:
            _, quota = self._gate.admit(request.scope, Role.READER)
            body = await read_body(request, self._max_body_bytes)
            start, body = await unless_gone(request, self._carried(request.scope, body))
        except QueryCancelled:
            raise
        except ProblemError as problem:
            return _refused(problem, request.scope["state"])
        headers = [*start["headers"], (b"cache-control", b"no-store"), *quota.headers()]
        return Ready(body, start["status"], headers)

    async def _carried(self, scope: Scope, body: bytes) -> tuple[Message, bytes]:
        """The SDK's answer to a message: its start and its body. Cancelling this stops the tool."""
        start: Message = {}
        parts: list[bytes] = []
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return unread.pop() if unread else await asyncio.get_running_loop().create_future()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                parts.append(message.get("body", b""))

        await self._manager.handle_request(scope, receive, send)
        return start, b"".join(parts)

    async def _listed(self, context: ServerRequestContext[Any], _: PaginatedRequestParams | None) -> ListToolsResult:
        """The tools that the caller may use."""
        role = _scope(context)["state"]["principal"].role
        tools = [tool for name, tool in self._tools.items() if mcp_tools.ROLES[name].rank <= role.rank]
        return ListToolsResult(tools=tools, cache_scope="private")

    async def _called(self, context: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        scope = _scope(context)
        state = scope["state"]
        if params.name not in self._tools:
            state["log"]["code"], state["counted_status"] = "unknown_tool", 404
            raise MCPError(INVALID_PARAMS, f"unknown tool {params.name[:80]!r}; there are {', '.join(self._tools)}")
        state["log"]["tool"] = params.name
        arguments = params.arguments or {}
        try:
            principal, _ = self._gate.admit(scope, mcp_tools.ROLES[params.name])
            mcp_tools.known_arguments(self._tools[params.name], arguments)
            return _answered(await self._runs[params.name](scope, principal, arguments))
        except QueryCancelled:
            raise
        except ProblemError as problem:
            return _failed(problem, state)
        except Exception:
            logger.exception("unexpected error", extra={"fields": {"request_id": state["request_id"]}})
            text = "something went wrong here; the request id finds it in the log"
            return _failed(ProblemError("internal_error", text), state)

    async def _list_queries(self, _: Scope, __: Principal, ___: _Document) -> _Document:
        return {"queries": [query.describe() for query in self._service.catalogue.queries.values()]}

    async def _list_tables(self, _: Scope, principal: Principal, __: _Document) -> _Document:
        snapshot = self._store.current
        document = {"snapshot_id": snapshot.id, "published_at": formatdate(snapshot.published_at, usegmt=True)}
        return {**document, "tables": self._service.relations(principal)}

    async def _run_query(self, scope: Scope, principal: Principal, arguments: _Document) -> _Document:
        limits = _limits(arguments)
        bound = self._service.bind(mcp_tools.query_name(arguments), mcp_tools.parameter_texts(arguments))
        scope["state"]["log"]["query"] = bound.query.name
        scope["state"]["audit"]["params"] = bound.text
        result = await self._service.named(bound, "json", principal, bypass=False, limits=limits)
        return _table(scope, result)

    async def _run_sql(self, scope: Scope, principal: Principal, arguments: _Document) -> _Document:
        scope["state"]["log"]["query"] = AD_HOC
        limits = _limits(arguments)
        sql, params = sql_and_params({name: value for name, value in arguments.items() if name != "max_rows"})
        scope["state"]["audit"].update(sql=sql, params=params)
        result = await self._service.ad_hoc(sql, params, "json", principal, bypass=False, limits=limits)
        return _table(scope, result)


def _scope(context: ServerRequestContext[Any]) -> Scope:
    """The scope of the HTTP request that brought a message."""
    request = context.request
    assert isinstance(request, Request)  # noqa: S101 - this transport attaches it
    return request.scope


def _security(hosts: tuple[str, ...]) -> TransportSecuritySettings:
    """Which `Host` and `Origin` headers are taken: a page elsewhere must not reach a service through a browser."""
    names = [form for host in hosts for form in (host, f"{host}:*")]
    origins = [f"{scheme}://{name}" for scheme in ("http", "https") for name in names]
    return TransportSecuritySettings(allowed_hosts=names, allowed_origins=origins)


def _limits(arguments: _Document) -> Limits:
    return Limits(mcp_tools.row_limit(arguments), mcp_tools.MAX_BYTES)


def _table(scope: Scope, result: Result) -> _Document:
    log_result(scope, result)
    entry = result.served.entry
    return {
        **orjson.loads(entry.raw()),
        "data_version": result.snapshot_id,
        "cache": result.served.result,
        "age_seconds": int(max(0, time.time() - entry.created_at)),
    }


def _answered(document: _Document) -> CallToolResult:
    """As structured content, and the same as text for clients that show no other."""
    text = orjson.dumps(document, default=str)
    return CallToolResult(content=[TextContent(text=text.decode())], structured_content=orjson.loads(text))


def _failed(problem: ProblemError, state: _Document) -> CallToolResult:
    """A refusal as the tool's error. MCP answers it with 200; it is counted and logged as what it is."""
    state["log"]["code"], state["counted_status"] = problem.code, problem.status
    document = problem.document(state["request_id"])
    notes = [problem.code]
    if "position" in document:
        notes.append(f"at character {document['position']}")
    if problem.retry_after_seconds is not None:
        document["retry_after_seconds"] = problem.retry_after_seconds
        notes.append(f"try again in {problem.retry_after_seconds:g} s")
    text = f"{problem.detail} ({', '.join(notes)})"
    return CallToolResult(content=[TextContent(text=text)], structured_content=document, is_error=True)


def _refused(problem: ProblemError, state: _Document) -> Response:
    """A refusal before any tool: its HTTP status, and a JSON-RPC error, which clients show where they drop other bodies."""
    error = {"code": _SERVER_ERROR, "message": problem.detail, "data": problem.document(state["request_id"])}
    body = orjson.dumps({"jsonrpc": "2.0", "id": None, "error": error})
    return Ready(body, problem.status, problem_headers(problem, state, b"application/json", len(body)))
