"""uvicorn's HTTP protocol, with bounds on a request's head, on what frames its body and on a reader's slowness, our error
shape for what is no HTTP, and a short way for answers that are at hand.

Without the first bound the parser gathers a header that never ends, at a cost that grows with its square: one connection
could take all the memory and all of the event loop. The headers that may follow a body in chunks are gathered the same
way, and the extensions of a chunk are read for ever. Without the last a client that asks and never reads keeps its answer
in memory for as long as it likes.

No protocol is changed to here. After a head that asks for it the parser knows of no body: what came next, the body of that
request to everybody else, would be read as another request (and was: a stranger could put one before the next request on a
connection that an edge shares among its clients). Such a connection ends with the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import socket
import struct
import termios
from collections.abc import Iterable
from typing import Any, Protocol, cast, runtime_checkable

import orjson
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from .errors import PROBLEM_MEDIA_TYPE, BadRequest, HeadersTooLarge, ProblemError
from .http_io import Whole, lines

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 262_144
"""A head still incomplete after this much is cut off; smaller ones are judged by the application."""
_MAX_URL_BYTES = 60_000
_FRAMING_PER_BODY_BYTE = 8
"""A body of single bytes, each a chunk, takes five bytes of framing for each; nobody needs more."""
_KERNEL_UNSENT_BYTES = 131_072
_LOOKS_PER_TIMEOUT = 8
_AT_ONCE_PER_READ = 64
"""Of requests sent in one go so many are answered at once; the others take turns with everybody else's."""
_OUTBOX_ANSWERS, _OUTBOX_BYTES = 16, 65_536


@runtime_checkable
class Counts(Protocol):
    """An application that wants to know of what happens without it."""

    def refused(self, status: int) -> None:
        """One request, which it never saw, was refused with `status`."""

    def cut(self) -> None:
        """A connection was cut because its client does not read."""


@runtime_checkable
class AnswersAtOnce(Protocol):
    """An application that can give some answers without waiting for anything."""

    def at_once(self, scope: Scope) -> Whole | None:
        """The answer, or None: call the application."""


class Outbox:
    """Answers at hand of one turn of the event loop, written in a row at its end, for all connections together.

    To wake a reader that sleeps costs the system more than to write. Written one by one, with the next request's work in
    between, each answer would find its reader asleep again. Every other write to a connection must `flush` before.
    """

    def __init__(self) -> None:
        self._answers: list[tuple[asyncio.Transport, bytes]] = []
        self._bytes = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._lines = b""

    def head_lines(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The server's own headers as lines; uvicorn makes a new list of them each second."""
        if headers is not self._headers:
            self._headers, self._lines = headers, lines(headers)
        return self._lines

    def put(self, transport: asyncio.Transport, answer: bytes) -> None:
        """Write `answer` before the event loop waits again; sooner when many have gathered."""
        if not self._answers:
            asyncio.get_running_loop().call_soon(self.flush)
        self._answers.append((transport, answer))
        self._bytes += len(answer)
        if len(self._answers) >= _OUTBOX_ANSWERS or self._bytes >= _OUTBOX_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        answers, self._answers, self._bytes = self._answers, [], 0
        for transport, answer in answers:
            if not transport.is_closing():
                try:
                    transport.write(answer)
                except Exception:  # no memory, say: the others' answers are there all the same
                    logger.exception("an answer could not be written; its connection is cut")
                    transport.abort()


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    outbox: Outbox
    """Shared by a server's connections."""

    send_timeout_seconds = 30.0
    """A client that has taken nothing of its answer for this long is cut off."""

    _in_head = False
    _head_bytes = 0
    _framing_bytes = 0
    _body_bytes = 0
    _is_last = False
    _at_once_left = 0
    _watch: asyncio.TimerHandle | None = None
    _unread_bytes = 0
    _moved_at = 0.0
    _is_idle = False
    """Nothing is asked any more, and what is left of the last answer has to be read before the connection ends."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._at_once = self.app.at_once if isinstance(self.app, AnswersAtOnce) else None

    def pause_writing(self) -> None:
        """The client is slower than its answer: from now on somebody looks whether it reads at all."""
        super().pause_writing()
        self._look_from_now_on()

    def resume_writing(self) -> None:
        """It has read; of a last answer what is left is little, and has to leave all the same."""
        if not self._ends_when_read:
            self._look_no_more()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        self._look_no_more()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """An answer is written. The last one of its connection is watched until it has left: nothing else would end that."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_the_rest()

    def eof_received(self) -> None:
        """The client asks nothing more: the transport closes, once what was written is read."""
        self.outbox.flush()
        super().eof_received()
        self.loop.call_soon(self._watch_the_rest)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, as soon as its client has read its last answer."""
        if self.transport.get_write_buffer_size() > 0:
            self._is_idle = True
            self._watch_the_rest()
        else:
            super().timeout_keep_alive_handler()

    @property
    def _ends_when_read(self) -> bool:
        return self._is_idle or self.transport.is_closing()

    def _watch_the_rest(self) -> None:
        if self._watch is None and self.transport.get_write_buffer_size() > 0:
            self._look_from_now_on()

    def _look_from_now_on(self) -> None:
        self._look_no_more()
        self._unread_bytes, self._moved_at = self._unread(), self.loop.time()
        self._look_later()

    def _look_later(self) -> None:
        self._watch = self.loop.call_later(self.send_timeout_seconds / _LOOKS_PER_TIMEOUT, self._look)

    def _look_no_more(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _look(self) -> None:
        if self._ends_when_read and self.transport.get_write_buffer_size() == 0:
            self._look_no_more()
            super().timeout_keep_alive_handler()  # what the system still holds does not keep it from closing
            return
        if self.transport.get_write_buffer_size() == 0:
            self._look_no_more()
            return
        unread, now = self._unread(), self.loop.time()
        if unread < self._unread_bytes:
            self._unread_bytes, self._moved_at = unread, now
        if now - self._moved_at >= self.send_timeout_seconds:
            self._cut()
        else:
            self._look_later()

    def _unread(self) -> int:
        """Bytes that the client's system has not taken: here, and in this system's hands."""
        here = self.transport.get_write_buffer_size()
        connection = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):  # some systems cannot say
            here += struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        return here

    def _close(self) -> None:
        self.transport.close()
        self._watch_the_rest()

    def _cut(self) -> None:
        # What is unread is thrown away, by the system too; a polite close would wait for it to be read.
        _set_option(
            self.transport.get_extra_info("socket"), socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.transport.abort()
        if isinstance(self.app, Counts):
            self.app.cut()

    def data_received(self, data: bytes) -> None:
        """Parse, and give up on a head, or on framing of a body, that does not end."""
        if self._is_last:
            return
        self._at_once_left = _AT_ONCE_PER_READ
        self._head_bytes += len(data)
        self._framing_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head:  # no timer of uvicorn's runs until the head is complete
            self._watch_the_rest()
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            detail = f"the request's head is larger than {MAX_HEAD_BYTES} bytes"
            self._refuse(HeadersTooLarge("headers_too_large", detail), b"Request Header Fields Too Large")
        elif self._framing_bytes > MAX_HEAD_BYTES + _FRAMING_PER_BODY_BYTE * self._body_bytes:
            logger.warning("a request's framing has no end: its connection is cut")
            self.outbox.flush()
            self._close()

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
        if self._is_idle:
            self._is_idle = False
            if not self.flow.write_paused:
                self._look_no_more()
        # Longer ones make the URL parser fail. What is left is longer than any we answer, so it gets its refusal.
        self.url = self.url[:_MAX_URL_BYTES]
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self._is_last = True
            self.cycle.keep_alive = False

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: whoever likes may ask for it, as often as they like."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Answer here and now if that is possible: a task and two messages would cost more than most cached answers."""
        answer = self._at_once(cast(Scope, cycle.scope)) if self._at_once and self._is_plain(cycle) else None
        if answer is None:
            super()._start_asgi_task(cycle, app)
            return
        status_line, default = STATUS_LINE[answer.status], self.outbox.head_lines(self.server_state.default_headers)
        self.outbox.put(self.transport, b"%s%s%s\r\n%s" % (status_line, default, answer.head, answer.body))
        cycle.response_started = cycle.response_complete = True
        self._at_once_left -= 1
        self.on_response_complete()

    def _is_plain(self, cycle: RequestResponseCycle) -> bool:
        """Whether nothing but this answer is to be thought of: no earlier one under way, none waiting for its turn, the
        connection stays open and takes bytes."""
        return cycle.keep_alive and not (
            self._at_once_left <= 0
            or self.pipeline
            or self.flow.write_paused
            or cycle.waiting_for_100_continue
            or self.parser.should_upgrade()
        )

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed."""
        self._refuse(BadRequest("bad_request", msg), b"Bad Request")

    def shutdown(self) -> None:
        """The server ends: so does an idle connection, with all that it was to be sent."""
        self.outbox.flush()
        super().shutdown()

    def _refuse(self, problem: ProblemError, phrase: bytes) -> None:
        self.outbox.flush()
        request_id = f"{random.getrandbits(128):032x}"
        body = orjson.dumps(problem.document(request_id))
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\ncache-control: no-store\r\n"
            b"x-request-id: %s\r\nconnection: close\r\n\r\n%s"
            % (problem.status, phrase, PROBLEM_MEDIA_TYPE.encode(), len(body), request_id.encode(), body)
        )
        self._close()
        if isinstance(self.app, Counts):
            self.app.refused(problem.status)


def impatient(send_timeout_seconds: float) -> type[BoundedHttpProtocol]:
    """The protocol that cuts off clients who take nothing of their answer for so long."""
    members = {"send_timeout_seconds": send_timeout_seconds, "outbox": Outbox()}
    return type("ImpatientHttpProtocol", (BoundedHttpProtocol,), members)


def keep_little_in_the_kernel(listening: Iterable[socket.socket]) -> None:
    """Let the system hold 128 KiB for a client that does not read, and not megabytes, which the container is charged for.

    Connections have it from the socket that took them.
    """
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if option is None:
        return
    for listener in listening:
        _set_option(listener, socket.IPPROTO_TCP, option, struct.pack("i", _KERNEL_UNSENT_BYTES))


def _set_option(of: socket.socket, level: int, option: int, value: bytes) -> None:
    # By another handle of the same socket: the event loop's own has no such method.
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(of.fileno())) as same:
        same.setsockopt(level, option, value)
