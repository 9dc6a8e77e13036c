"""`/api/v1/chat`: a question in words over HTTP, answered as one JSON document or as server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..access import Role
from ..auth import Gate
from ..errors import BadRequest, ProblemError, QueryCancelled
from ..http_io import (
    CLIENT_GONE_STATUS,
    disconnected,
    header,
    is_clean,
    json_answer,
    json_object,
    log_result,
    query_pairs,
    unless_gone,
    wants_no_cache,
)
from ..rate_limit import Quota
from .asked import Asked
from .chat import Answered, ChatService
from .prompt import Question, Turn

logger = logging.getLogger(__name__)

MAX_QUESTION_CHARACTERS = 2_000
MAX_TURNS = 10
_MAX_SQL_CHARACTERS = 20_000
_MAX_NAME_CHARACTERS = 200
_KEEP_ALIVE_SECONDS = 10.0
_EVENT_STREAM = b"text/event-stream"


class ChatRoom:
    """The endpoint."""

    def __init__(self, gate: Gate, chat: ChatService, max_body_bytes: int) -> None:
        self._gate, self._chat, self._max_body_bytes = gate, chat, max_body_bytes

    async def ask(self, request: Request) -> Response:
        """A question's answer; `Accept: text/event-stream` asks for it as events."""
        scope = request.scope
        principal, quota = self._gate.admit(scope, Role.ANALYST)
        if scope["method"] == "POST":
            if query_pairs(scope):
                raise BadRequest("unknown_parameter", "the question goes into the body; the query string has none")
            question = question_of(await json_object(request, self._max_body_bytes))
        else:
            question = Question(_asked_by_get(scope))
        scope["state"]["audit"]["question"] = question.text
        asked = Asked(principal, is_streamed=_wants_events(scope), is_fresh=wants_no_cache(scope))
        if asked.is_streamed:
            return _Events(lambda: self._answer(scope, question, asked), asked, quota)
        document = (await unless_gone(request, self._answer(scope, question, asked))).document
        return json_answer(document, quota, (b"x-data-version", document["data_version"].encode()))

    async def _answer(self, scope: Scope, question: Question, asked: Asked) -> Answered:
        try:
            answered = await self._chat.answer(question, asked)
        finally:
            log, audit = scope["state"]["log"], scope["state"]["audit"]
            found = dict(asked.found)
            if "query" in found:
                log["query"] = found.pop("query")
            log["tokens"] = asked.tokens.document()
            audit.update(found)
        if answered.result is not None:
            log_result(scope, answered.result)
        return answered


def question_of(document: Mapping[str, Any]) -> Question:
    """The members of `{"question": text, "conversation"?: [{"question", "query"?, "sql"?}]}`. Raises `BadRequest`."""
    _known(document, {"question", "conversation"}, "the body")
    text = _text(document, "question", MAX_QUESTION_CHARACTERS)
    turns = document.get("conversation")
    turns = [] if turns is None else turns
    if not isinstance(turns, list) or len(turns) > MAX_TURNS or not all(isinstance(turn, dict) for turn in turns):
        form = '[{"question": "…", "query": "…", "sql": "…"}]'
        raise BadRequest("bad_body", f"'conversation' must be a list of at most {MAX_TURNS} earlier turns: {form}")
    return Question(text, tuple(map(_turn, turns)))


def _turn(document: Mapping[str, Any]) -> Turn:
    _known(document, {"question", "query", "sql"}, "a turn of the conversation")
    query = None if document.get("query") is None else _text(document, "query", _MAX_NAME_CHARACTERS)
    sql = None if document.get("sql") is None else _text(document, "sql", _MAX_SQL_CHARACTERS)
    return Turn(_text(document, "question", MAX_QUESTION_CHARACTERS), query, sql)


def _known(document: Mapping[str, Any], known: set[str], what: str) -> None:
    if unknown := document.keys() - known:
        names = ", ".join(map(repr, sorted(known)))
        raise BadRequest("bad_body", f"unknown member {min(unknown)[:60]!r} in {what}; known are {names}")


def _text(document: Mapping[str, Any], name: str, most: int) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not is_clean(value):
        raise BadRequest("bad_body", f"{name!r} must be text, without NUL characters and halves of surrogate pairs")
    if not value.strip() or len(value) > most:
        raise BadRequest("bad_body", f"{name!r} must have 1 to {most} characters that are not all blanks")
    return value


def _asked_by_get(scope: Scope) -> str:
    pairs = query_pairs(scope)
    if unknown := [name for name, _ in pairs if name != "q"]:
        raise BadRequest("unknown_parameter", f"unknown parameter {unknown[0][:60]!r}; only 'q' is read here")
    if len(pairs) != 1:
        code, text = (
            ("repeated_parameter", "is given more than once") if pairs else ("missing_parameter", "is required")
        )
        raise BadRequest(code, f"parameter 'q' {text}: the question", extra={"parameter": "q"})
    question = pairs[0][1]
    if not question.strip() or len(question) > MAX_QUESTION_CHARACTERS or not is_clean(question):
        text = f"parameter 'q' must have 1 to {MAX_QUESTION_CHARACTERS} characters, not all blanks and no NUL"
        raise BadRequest("bad_parameter", text, extra={"parameter": "q"})
    return question


def _wants_events(scope: Scope) -> bool:
    """Whether `Accept` names event streams, and not only to refuse them."""
    for part in header(scope, b"accept").lower().split(b","):
        media, _, parameters = part.partition(b";")
        if media.strip() == _EVENT_STREAM:
            quality = parameters.replace(b" ", b"").partition(b"q=")[2].partition(b";")[0]
            return not quality or bool(quality.strip(b"0."))
    return False


class _Events(Response):
    """The answer as it is found: `step` events, then `answer` or `problem`; a comment now and then keeps proxies patient."""

    def __init__(self, answer: Callable[[], Any], asked: Asked, quota: Quota) -> None:
        self.status_code, self.background = 200, None
        self._answer, self._asked, self._quota = answer, asked, quota

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send, unless the client goes away, which stops the model and the query; that is counted as 499."""
        events: asyncio.Queue[bytes] = asyncio.Queue()
        self._asked.step = lambda name: events.put_nowait(_event("step", {"step": name}))
        headers = [(b"content-type", _EVENT_STREAM), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": [*headers, *self._quota.headers()]})
        answering = asyncio.ensure_future(self._answer())
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            while not gone.done() and not (answering.done() and events.empty()):
                next_event = asyncio.ensure_future(events.get())
                await asyncio.wait(
                    {next_event, answering, gone}, timeout=_KEEP_ALIVE_SECONDS, return_when="FIRST_COMPLETED"
                )
                if next_event.done():
                    await _write(send, next_event.result())
                    continue
                next_event.cancel()
                if not answering.done():
                    await _write(send, b": still at it\n\n")
            if gone.done():
                scope["state"]["counted_status"] = CLIENT_GONE_STATUS
                return
            await _write(send, _ending(answering, scope["state"]))
            await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()
            if not answering.done():
                answering.cancel()
                await asyncio.wait({answering})


async def _write(send: Send, event: bytes) -> None:
    await send({"type": "http.response.body", "body": event, "more_body": True})


def _ending(answering: asyncio.Future[Answered], state: dict[str, Any]) -> bytes:
    """The last event. A problem's status is counted and logged, though what was sent is a 200."""
    error = answering.exception()
    if error is None:
        return _event("answer", answering.result().document)
    if isinstance(error, QueryCancelled) or not isinstance(error, Exception):
        raise error
    if not isinstance(error, ProblemError):
        logger.error("unexpected error", exc_info=error, extra={"fields": {"request_id": state["request_id"]}})
        error = ProblemError("internal_error", "something went wrong here; the request id finds it in the log")
    state["log"]["code"], state["counted_status"] = error.code, error.status
    document = error.document(state["request_id"])
    if error.retry_after_seconds is not None:
        document["retry_after_seconds"] = error.retry_after_seconds
    return _event("problem", document)


def _event(name: str, document: Mapping[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(document, default=str))
