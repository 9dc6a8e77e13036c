"""The outermost ASGI layer: request ids, metrics, one log line a request, and problem documents for what escapes.

Pure ASGI (no BaseHTTPMiddleware: it breaks streaming and costs a task per request), so also requests refused before
routing are counted and time spent in failed requests is observed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
import sys
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import Principal
from .errors import PROBLEM_MEDIA_TYPE, HeadersTooLarge, Overloaded, ProblemError, QueryCancelled
from .http_io import CLIENT_GONE_STATUS, Whole
from .lines import Lines, json_line
from .metrics import UNMATCHED_ENDPOINT, Metrics

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
MAX_HEADER_BYTES = 32_768
_MEMORY_RETRY_SECONDS = 5
_AUDITED = ("/api/", "/mcp")
_QUIET = frozenset({"/health/live", "/health/ready", "/metrics"})


class JsonFormatter(logging.Formatter):
    """One JSON object a line; `extra={"fields": {...}}` becomes members."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON text."""
        line: dict[str, Any] = {
            "time": _iso(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json_line(line).decode()


def configure_logging(level: str) -> None:
    """Send every log record of the process to standard error as JSON lines (requests go to standard output)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class RequestLog(Lines):
    """The request log: lines of JSON on standard output."""

    def __init__(self) -> None:
        super().__init__(_to_standard_output)


def _to_standard_output(text: bytearray, _: int) -> None:
    """Write. A reader that went away must not take the service with it."""
    try:
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
    except (OSError, ValueError):
        logger.debug("request log not written")


class Telemetry:
    """Wraps the application. `scope["state"]` carries `principal` and `endpoint` to inner rooms,
    and back what they add to the request's line (`log`) and to the audit log's alone (`audit`), and the status to count
    where the one sent says less (`counted_status`: to MCP a tool's error is a success of HTTP).

    `at_once` is an endpoint and who may know an answer to its GETs without waiting: see `Telemetry.at_once`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        identify: Callable[[Scope], Principal],
        metrics: Metrics,
        endpoint_of: Callable[[str], str],
        audit: Callable[[Mapping[str, Any]], None] | None = None,
        write_line: Callable[[Mapping[str, Any]], None] | None = None,
        at_once: tuple[str, Callable[[Scope], Whole | None]] | None = None,
    ) -> None:
        self._app = app
        self._identify = identify
        self._audit = audit
        self._metrics = metrics
        self._endpoint_of = endpoint_of
        self._write_line = write_line or RequestLog()
        self._quick_endpoint, self._quick = at_once or ("", _knows_none)

    def at_once(self, scope: Scope) -> Whole | None:
        """The answer, where it can be given without waiting for anything; counted and logged like every other.

        None: call the application with the same scope. It goes on with what was begun here, so that nothing is counted
        twice.
        """
        endpoint = self._endpoint_of(scope["path"])
        if endpoint != self._quick_endpoint or scope["method"] != "GET" or _is_large(scope):
            return None
        state = self._begin(scope, endpoint)
        try:
            answer = self._quick(scope)
        except Exception as error:  # told by the application's side, which knows how
            state["refusal"] = error
            return None
        if answer is None:
            return None
        head = b"%sx-request-id: %s\r\n" % (answer.head, state["request_id"].encode())
        self._record(scope, state, answer.status, len(answer.body))
        return Whole(answer.status, head, answer.body)

    def _begin(self, scope: Scope, endpoint: str) -> dict[str, Any]:
        state: dict[str, Any] = scope.setdefault("state", {})
        state["started"] = time.perf_counter()
        state["endpoint"] = endpoint
        state["request_id"] = _request_id(scope)
        state["principal"] = self._identify(scope)
        state["log"], state["audit"] = {}, {}
        return state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            if isinstance(self._write_line, RequestLog):  # the end of the lifespan: no other line will take these along
                self._write_line.flush()
            return
        state = scope.get("state", {})
        if "started" not in state:
            state = self._begin(scope, self._endpoint_of(scope["path"]))
        sent: dict[str, int] = {"status": 0, "bytes": 0}
        request_id = state["request_id"].encode()

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            elif message["type"] == "http.response.body":
                sent["bytes"] += len(message.get("body", b""))
            await send(message)

        self._metrics.in_progress += 1
        try:
            if "refusal" in state:
                raise state.pop("refusal")
            if _is_large(scope):
                detail = f"the request's headers are larger than {MAX_HEADER_BYTES} bytes"
                raise HeadersTooLarge("headers_too_large", detail)
            await self._app(scope, receive, send_counted)
        except QueryCancelled:
            sent["status"] = CLIENT_GONE_STATUS
        except asyncio.CancelledError:
            sent["status"] = sent["status"] or CLIENT_GONE_STATUS
            raise
        except Exception as error:
            await self._fail(error, scope, sent, send_counted)
        finally:
            self._metrics.in_progress -= 1
            self._record(scope, state, sent["status"] or CLIENT_GONE_STATUS, sent["bytes"])

    def refused(self, status: int) -> None:
        """Count a request that was refused before it reached this layer: bytes that are no HTTP."""
        self._metrics.observe_request("OTHER", UNMATCHED_ENDPOINT, status, 0.0)

    def cut(self) -> None:
        """Count a connection that was cut because its client does not read."""
        self._metrics.send_cuts.inc()

    async def _fail(self, error: Exception, scope: Scope, sent: Mapping[str, int], send: Send) -> None:
        problem, state = error, scope["state"]
        if isinstance(problem, MemoryError):
            problem = no_memory(state)
        if not isinstance(problem, ProblemError):
            logger.exception("unexpected error", extra={"fields": {"request_id": state["request_id"]}})
            problem = ProblemError("internal_error", "something went wrong here; the request id finds it in the log")
        if not sent["status"]:
            await send_problem(problem, state, send)

    def _record(self, scope: Scope, state: dict[str, Any], status: int, sent_bytes: int) -> None:
        seconds = time.perf_counter() - state["started"]
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        if status < 400:
            status = state.get("counted_status", status)
        endpoint: str = state["endpoint"]
        self._metrics.observe_request(method, endpoint, status, seconds)
        if scope["path"] in _QUIET:
            return
        principal: Principal = state["principal"]
        if endpoint != UNMATCHED_ENDPOINT and principal.role is not None:
            self._metrics.users.saw(principal.client)
        line = {
            "time": _iso(time.time()),
            "level": "info",
            "message": "request",
            "request_id": state["request_id"],
            "client": principal.client,
            "method": method,
            "endpoint": endpoint,
            "status": status,
            "seconds": round(seconds, 6),
            "bytes": sent_bytes,
            **state["log"],
        }
        self._write_line(line)
        if self._audit is not None and endpoint.startswith(_AUDITED):
            self._audit({**line, **state["audit"], **_identity(principal)})


def _knows_none(_: Scope) -> None:
    return None


def _is_large(scope: Scope) -> bool:
    return sum([len(name) + len(value) for name, value in scope["headers"]]) > MAX_HEADER_BYTES


def _identity(principal: Principal) -> dict[str, str | None]:
    policy = principal.rows.name if principal.rows is not None else None
    return {"key": principal.name or None, "role": principal.role, "policy": policy}


def no_memory(state: Mapping[str, Any]) -> Overloaded:
    """The refusal of a request for which the system had no memory: it is full of others', and will not stay so."""
    logger.error("no memory left for a request", extra={"fields": {"request_id": state["request_id"]}})
    text = "this replica has no memory left for the answer; ask again shortly"
    return Overloaded("memory_full", text, retry_after_seconds=_MEMORY_RETRY_SECONDS)


async def send_problem(problem: ProblemError, state: dict[str, Any], send: Send) -> None:
    """Send `problem` as `application/problem+json`, with the quota headers of a request that got so far."""
    body = orjson.dumps(problem.document(state["request_id"]))
    headers = problem_headers(problem, state, PROBLEM_MEDIA_TYPE.encode(), len(body))
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def problem_headers(
    problem: ProblemError, state: dict[str, Any], media_type: bytes, length: int
) -> list[tuple[bytes, bytes]]:
    """The headers of an answer that is `problem`, whose code is noted for the request's line."""
    state["log"]["code"] = problem.code
    quota = state.get("quota")
    headers = [
        (b"content-type", media_type),
        (b"content-length", b"%d" % length),
        (b"cache-control", b"no-store"),
        *problem.headers,
        *(quota.headers() if quota else ()),
    ]
    if problem.retry_after_seconds is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(problem.retry_after_seconds))))
    return headers


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return bytes(value).decode()
    return f"{random.getrandbits(128):032x}"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _iso(seconds: float) -> str:
    return f"{_second(int(seconds))}.{int(seconds % 1 * 1000):03d}Z"
