#!/usr/bin/env python3
"""Stands in for Ollama: `serve`, `list`, and of its API the call that the chat makes, by words of the question."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 11434
USAGE = {"prompt_tokens": 900, "completion_tokens": 30, "total_tokens": 930}
asked: Counter[str] = Counter()


def choose(messages: list[dict[str, Any]]) -> tuple[str, str]:
    """The tool to call, and its arguments as text."""
    question = next(m["content"] for m in reversed(messages) if m["role"] == "user")
    was_refused = messages[-1]["role"] == "tool"
    if "rubbish" in question and asked[question] % 2:
        return "run_sql", "not JSON"
    if "unheard" in question:
        return "cannot_answer", json.dumps({"reason": "the tables do not say"})
    if "wrong" in question and not was_refused:
        return "run_sql", json.dumps({"sql": "select nowhere from sales"})
    return "run_sql", json.dumps({"sql": "select count(*) as lines, sum(amount) as amount from sales"})


class Handler(BaseHTTPRequestHandler):
    """Chat completions, whole."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:  # the base class's name
        """The answer, or 429 at the first time of a question that says "busy"."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/v1/chat/completions":
            return self.send({"error": {"message": "no such path"}}, 404)
        question = next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user")
        asked[question] += 1
        if "busy" in question and asked[question] == 1:
            return self.send({"error": {"message": "busy"}}, 429)
        name, arguments = choose(body["messages"])
        call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        return self.send({"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE})

    def send(self, document: dict[str, Any], status: int = 200) -> None:
        """One JSON answer."""
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def main() -> None:
    """What compose.yaml asks of the program."""
    if sys.argv[1:] == ["serve"]:
        # As the real one: it makes a key at home, and looks for its models where they are to be.
        pathlib.Path(os.environ["HOME"], ".ollama").mkdir(exist_ok=True)
        list(pathlib.Path(os.environ["OLLAMA_MODELS"]).iterdir())
        host, _, port = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434").partition(":")
        ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
    elif sys.argv[1:] == ["list"]:
        socket.create_connection(("127.0.0.1", PORT), 2).close()
    elif sys.argv[1] == "pull":
        path = pathlib.Path(os.environ["OLLAMA_MODELS"], "manifests", sys.argv[2])
        path.parent.mkdir(exist_ok=True)
        path.write_text("fetched")
    else:
        sys.exit(f"unknown: {sys.argv[1:]}")


main()
