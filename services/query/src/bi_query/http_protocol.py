"""uvicorn's HTTP protocol with bounds on a request's head and on what frames its body, and our error shape for what is
no HTTP.

Without a bound the parser gathers a header that never ends, at a cost that grows with its square: one connection could
take all the memory and all of the event loop. The headers that may follow a body in chunks are gathered the same way, and
the extensions of a chunk are read for ever.

No protocol is changed to here. After a head that asks for it the parser knows of no body: what came next, the body of that
request to everybody else, would be read as another request (and was: a stranger could put one before the next request on a
connection that an edge shares among its clients). Such a connection ends with the answer.
"""

from __future__ import annotations

import logging
import random
from typing import Protocol, runtime_checkable

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .errors import PROBLEM_MEDIA_TYPE, BadRequest, HeadersTooLarge, ProblemError

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 262_144
"""A head still incomplete after this much is cut off; smaller ones are judged by the application."""
_MAX_URL_BYTES = 60_000
_FRAMING_PER_BODY_BYTE = 8
"""A body of single bytes, each a chunk, takes five bytes of framing for each; nobody needs more."""


@runtime_checkable
class CountsRefusals(Protocol):
    """An application that wants to know of requests it never saw."""

    def refused(self, status: int) -> None:
        """One request was refused with `status`."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    _in_head = False
    _head_bytes = 0
    _framing_bytes = 0
    _body_bytes = 0
    _is_last = False

    def data_received(self, data: bytes) -> None:
        """Parse, and give up on a head, or on framing of a body, that does not end."""
        if self._is_last:
            return
        self._head_bytes += len(data)
        self._framing_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            detail = f"the request's head is larger than {MAX_HEAD_BYTES} bytes"
            self._refuse(HeadersTooLarge("headers_too_large", detail), b"Request Header Fields Too Large")
        elif self._framing_bytes > MAX_HEAD_BYTES + _FRAMING_PER_BODY_BYTE * self._body_bytes:
            logger.warning("a request's framing has no end: its connection is cut")
            self.transport.close()

    def on_message_begin(self) -> None:
        """A new head starts."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._framing_bytes = self._body_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; those behind a body are nobody's, and would change a request that was judged by its head."""
        if self._in_head:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._body_bytes += len(body)
        self._framing_bytes -= len(body)
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head = False
        # Longer ones make the URL parser fail. What is left is longer than any we answer, so it gets its refusal.
        self.url = self.url[:_MAX_URL_BYTES]
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self._is_last = True
            self.cycle.keep_alive = False

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: whoever likes may ask for it, as often as they like."""

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
