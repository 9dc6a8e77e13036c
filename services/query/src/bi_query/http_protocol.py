"""uvicorn's HTTP protocol with bounds on a request's head, our error shape for what is no HTTP, and a short way for answers
that are at hand.

Without a bound the parser gathers a header that never ends, at a cost that grows with its square: one connection could
take all the memory and all of the event loop.
"""

from __future__ import annotations

import random
from typing import Any, Protocol, cast, runtime_checkable

import orjson
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from .errors import PROBLEM_MEDIA_TYPE, BadRequest, HeadersTooLarge, ProblemError
from .http_io import Whole, lines

MAX_HEAD_BYTES = 262_144
"""A head still incomplete after this much is cut off; smaller ones are judged by the application."""
_MAX_URL_BYTES = 60_000


@runtime_checkable
class CountsRefusals(Protocol):
    """An application that wants to know of requests it never saw."""

    def refused(self, status: int) -> None:
        """One request was refused with `status`."""


@runtime_checkable
class AnswersAtOnce(Protocol):
    """An application that can give some answers without waiting for anything."""

    def at_once(self, scope: Scope) -> Whole | None:
        """The answer, or None: call the application."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    _in_head = False
    _head_bytes = 0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._at_once = self.app.at_once if isinstance(self.app, AnswersAtOnce) else _knows_none

    def data_received(self, data: bytes) -> None:
        """Parse, and give up on a head that does not end."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            detail = f"the request's head is larger than {MAX_HEAD_BYTES} bytes"
            self._refuse(HeadersTooLarge("headers_too_large", detail), b"Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """A new head starts."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head = False
        # Longer ones make the URL parser fail. What is left is longer than any we answer, so it gets its refusal.
        self.url = self.url[:_MAX_URL_BYTES]
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Answer here and now if that is possible: a task and two messages would cost more than most cached answers."""
        answer = self._at_once(cast(Scope, cycle.scope)) if self._is_plain(cycle) else None
        if answer is None:
            super()._start_asgi_task(cycle, app)
            return
        status_line, default = STATUS_LINE[answer.status], lines(self.server_state.default_headers)
        self.transport.write(b"%s%s%s\r\n%s" % (status_line, default, answer.head, answer.body))
        cycle.response_started = cycle.response_complete = True
        self.on_response_complete()

    def _is_plain(self, cycle: RequestResponseCycle) -> bool:
        """Whether nothing but this answer is to be thought of: no earlier one under way, none waiting for its turn, the
        connection stays open and takes bytes."""
        return cycle.keep_alive and not (self.pipeline or self.flow.write_paused or cycle.waiting_for_100_continue)

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed."""
        self._refuse(BadRequest("bad_request", msg), b"Bad Request")

    def _refuse(self, problem: ProblemError, phrase: bytes) -> None:
        request_id = f"{random.getrandbits(128):032x}"
        body = orjson.dumps(problem.document(request_id))
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\ncache-control: no-store\r\n"
            b"x-request-id: %s\r\nconnection: close\r\n\r\n%s"
            % (problem.status, phrase, PROBLEM_MEDIA_TYPE.encode(), len(body), request_id.encode(), body)
        )
        self.transport.close()
        if isinstance(self.app, CountsRefusals):
            self.app.refused(problem.status)


def _knows_none(_: Scope) -> None:
    return None
