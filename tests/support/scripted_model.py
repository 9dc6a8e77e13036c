"""A model server of the tests' own: real HTTP, the chat completions API, replies as scripted, every byte received kept."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .service import free_port

USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}


@dataclass(frozen=True)
class Received:
    """One request as it came; names of headers in lower case."""

    raw: bytes
    headers: Mapping[str, str]

    @property
    def body(self) -> Any:
        """The JSON document."""
        return json.loads(self.raw)

    @property
    def told(self) -> str:
        """Everything the messages say, as one text."""
        return "\n".join(json.dumps(message, ensure_ascii=False) for message in self.body["messages"])


Reply = Callable[[BaseHTTPRequestHandler, Received], None]


def message(document: Mapping[str, Any], usage: Mapping[str, int] | None = USAGE, finish: str | None = "stop") -> Reply:
    """An assistant's message, whole or in pieces as the request asks."""

    def reply(handler: BaseHTTPRequestHandler, received: Received) -> None:
        if received.body.get("stream"):
            send_events(handler, [*pieces(document, finish), {"choices": [], "usage": usage}], "[DONE]")
        else:
            send_json(handler, {"choices": [{"message": document, "finish_reason": finish}], "usage": usage})

    return reply


def calls(name: str, arguments: Mapping[str, Any] | str, usage: Mapping[str, int] | None = USAGE) -> Reply:
    """One tool call; `arguments` as text may be any rubbish."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    call = {"id": "call_7", "type": "function", "function": {"name": name, "arguments": text}}
    return message({"role": "assistant", "content": None, "tool_calls": [call]}, usage, "tool_calls")


def runs_query(name: str, **parameters: Any) -> Reply:
    """The model chooses a named query."""
    return calls("run_query", {"name": name, "parameters": parameters})


def runs_sql(sql: str) -> Reply:
    """The model writes SQL."""
    return calls("run_sql", {"sql": sql})


def says(text: str) -> Reply:
    """The model talks where it should call a tool."""
    return message({"role": "assistant", "content": text})


def refuses(text: str = "I will not") -> Reply:
    """The model declines, as OpenAI's do."""
    return message({"role": "assistant", "content": None, "refusal": text})


def status(code: int, body: str = '{"error": {"message": "scripted"}}', **headers: str) -> Reply:
    """An HTTP error."""

    def reply(handler: BaseHTTPRequestHandler, _: Received) -> None:
        send(handler, body.encode(), "application/json", code, {k.replace("_", "-"): v for k, v in headers.items()})

    return reply


def raw(body: str, media_type: str = "application/json") -> Reply:
    """Any bytes with status 200."""

    def reply(handler: BaseHTTPRequestHandler, _: Received) -> None:
        send(handler, body.encode(), media_type)

    return reply


def cut() -> Reply:
    """The connection ends in the middle of a reply."""

    def reply(handler: BaseHTTPRequestHandler, received: Received) -> None:
        handler.send_response(200)
        if received.body.get("stream"):
            handler.send_header("content-type", "text/event-stream")
            handler.end_headers()
            first = pieces({"content": "SELECT half of "}, None)[0]
            handler.wfile.write(f"data: {json.dumps(first)}\n\n".encode())
        else:
            handler.send_header("content-type", "application/json")
            handler.send_header("content-length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [')

    return reply


def trickle(words: int, said: threading.Event | None = None, left: threading.Event | None = None) -> Reply:
    """A stream that begins with so many pieces of a word each, sets `said`, and then says nothing, as `silence`."""

    def reply(handler: BaseHTTPRequestHandler, received: Received) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.end_headers()
        for _ in range(words):
            piece = {"choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]}
            handler.wfile.write(f"data: {json.dumps(piece)}\n\n".encode())
        if said is not None:
            said.set()
        silence(left)(handler, received)

    return reply


def silence(left: threading.Event | None = None) -> Reply:
    """Says nothing until the other side hangs up, and then sets `left`."""

    def reply(handler: BaseHTTPRequestHandler, _: Received) -> None:
        ready = select.select([handler.connection], [], [], 60)[0]
        if ready and handler.connection.recv(1, socket.MSG_PEEK) == b"" and left is not None:
            left.set()

    return reply


def pieces(document: Mapping[str, Any], finish: str | None) -> list[dict[str, Any]]:
    """A message in the pieces that a stream brings: texts and arguments in halves."""
    deltas: list[dict[str, Any]] = [{"role": "assistant"}]
    for name in ("content", "refusal"):
        text = document.get(name) or ""
        deltas += [{name: part} for part in (text[: len(text) // 2], text[len(text) // 2 :]) if part]
    for index, call in enumerate(document.get("tool_calls") or []):
        text = call["function"]["arguments"]
        deltas.append(
            {"tool_calls": [{**call, "index": index, "function": {**call["function"], "arguments": text[:3]}}]}
        )
        deltas.append({"tool_calls": [{"index": index, "function": {"arguments": text[3:]}}]})
    found = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    return [*found, {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}]


def send_json(handler: BaseHTTPRequestHandler, document: Any) -> None:
    """A JSON answer."""
    send(handler, json.dumps(document).encode(), "application/json")


def send_events(handler: BaseHTTPRequestHandler, documents: list[Any], last: str) -> None:
    """A stream of events."""
    lines = [*map(json.dumps, documents), last]
    send(handler, "".join(f"data: {line}\n\n" for line in lines).encode(), "text/event-stream")


def send(
    handler: BaseHTTPRequestHandler,
    body: bytes,
    media_type: str,
    code: int = 200,
    headers: Mapping[str, str] | None = None,
) -> None:
    """One answer with its length."""
    handler.send_response(code)
    for name, value in {"content-type": media_type, "content-length": str(len(body)), **(headers or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


class ScriptedModel:
    """The server. `play` says what it will reply; what is not scripted is answered 418, which nobody tries again."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.received: list[Received] = []
        self._script: deque[Reply] = deque()
        self._server: ThreadingHTTPServer | None = None

    def play(self, *replies: Reply) -> None:
        """Forget what was received and scripted; reply with these, in turn."""
        self.received.clear()
        self._script = deque(replies)

    @property
    def left(self) -> int:
        """Replies nobody asked for yet."""
        return len(self._script)

    def start(self) -> None:
        """Listen."""
        model = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:  # the base class's name
                body = self.rfile.read(int(self.headers["content-length"]))
                received = Received(body, {name.lower(): value for name, value in self.headers.items()})
                assert self.path == "/v1/chat/completions", self.path
                model.received.append(received)
                self.close_connection = True
                reply = model._script.popleft() if model._script else status(418)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    reply(self, received)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextlib.contextmanager
def scripted_model() -> Iterator[ScriptedModel]:
    """A listening server for the length of a block."""
    model = ScriptedModel()
    model.start()
    try:
        yield model
    finally:
        model.stop()
