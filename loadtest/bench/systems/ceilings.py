"""The ceilings for hits: the same bytes from a bare ASGI application and from a plain FastAPI route, on the same server."""

from __future__ import annotations

import sys
from pathlib import Path

import fastapi
import uvicorn

from ..workload import Question
from .base import Ask, System

PLAIN = {"asgi": ("bare_app", "bare ASGI application"), "fastapi": ("fastapi_app", "plain FastAPI route")}


class Ceiling(System):
    """One of `PLAIN`, answering `body` to everything it is asked. The requests carry a key as the service's do, and no query
    string: they are shorter, which is in the ceilings' favour."""

    given = "the bytes of the service's answer, in memory; one uvicorn process with uvloop and httptools, no access log"

    def __init__(self, folder: Path, name: str, body: bytes) -> None:
        super().__init__(folder)
        self.name = name
        self._factory, self.title = PLAIN[name]
        self._body = body
        self.version = f"uvicorn {uvicorn.__version__}" + (
            f", FastAPI {fastapi.__version__}" if name == "fastapi" else ""
        )

    def start(self) -> None:
        """Serve the bytes."""
        path = self.folder / f"{self.name}.body"
        path.write_bytes(self._body)
        command = [sys.executable, "-m", "uvicorn", "--factory", f"loadtest.bench.plain:{self._factory}"]
        options = ["--no-access-log", "--log-level", "error", "--loop", "uvloop", "--http", "httptools"]
        self._run([*command, *options, "--port", str(self.port)], "/same-bytes", BENCH_BODY=str(path))

    def ask(self, question: Question) -> Ask:
        """Always the same; with a key, as the service's users send one."""
        return Ask("/same-bytes", headers={"X-API-Key": "k" * 59})
