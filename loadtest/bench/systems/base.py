"""What every system is to the benchmark: processes, HTTP requests for questions, and answers as rows by column name."""

from __future__ import annotations

import json
import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support.service import free_port, wait_until

from ..measure import process_seconds
from ..workload import Question

ROOT = Path(__file__).parents[3]
PEERS_BIN = ROOT / ".venv-bench" / "bin"
START_WITHIN_SECONDS = 120.0
ANSWER_WITHIN_SECONDS = 60.0

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Ask:
    """One HTTP request, without the headers that every request has."""

    target: str
    method: str = "GET"
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def raw(self, port: int) -> bytes:
        """As it goes over the wire."""
        lines = [f"{self.method} {self.target} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.body:
            lines.append(f"Content-Length: {len(self.body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + self.body


class System(ABC):
    """One system under measurement. `given` says in a sentence what data, settings and workers it has."""

    name: str
    title: str
    given: str
    version: str = ""
    caches: bool = True
    """Whether it has a cache of answers, or needs none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._client = httpx.Client(base_url=self.url, timeout=ANSWER_WITHIN_SECONDS)
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def start(self) -> None:
        """Start, and wait until it answers."""

    @abstractmethod
    def ask(self, question: Question) -> Ask:
        """The request for a question."""

    def rows(self, response: httpx.Response) -> Rows:
        """An answer as rows by column name; JSON records unless a system says otherwise."""
        return list(response.json())

    def forget(self) -> None:  # noqa: B027 - most have none
        """Empty its caches, where it has any. Called before each round of misses and of the mixed stream."""

    def requests(self, questions: Iterable[Question]) -> list[bytes]:
        """The requests for these questions, ready to send."""
        return [self.ask(question).raw(self.port) for question in questions]

    def fetch(self, question: Question) -> Rows:
        """Ask once. Raises `AssertionError` when it is refused."""
        ask = self.ask(question)
        response = self._client.request(ask.method, ask.target, content=ask.body or None, headers=dict(ask.headers))
        assert response.status_code == 200, f"{self.name}: {response.status_code} {response.text[:500]} to {ask}"
        return self.rows(response)

    def counted(self) -> dict[str, float]:
        """Counters of its own; the benchmark keeps their differences over a round. At least processor seconds."""
        return {"cpu_system_seconds": process_seconds(self._process.pid) if self._process is not None else 0.0}

    def stop(self) -> None:
        """End what `start` began."""
        self._client.close()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)

    def _run(self, command: Sequence[str], ready: str = "/", **environment: str) -> None:
        """Start a process; wait until `ready` answers with anything but a failed connection."""
        log = (self.folder / f"{self.name}.log").open("wb")
        with log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
                cwd=ROOT,
            )
        wait_until(
            lambda: self._answers(ready), START_WITHIN_SECONDS, what=lambda: f"{self.name}; its log ends\n{self._log()}"
        )

    def _answers(self, ready: str) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self._process.returncode}; its log ends\n{self._log()}")
        return self._client.get(ready).status_code < 500

    def _log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text(errors="replace")[-2000:]


def peer_version(package: str) -> str:
    """The version of a package in the peers' environment."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([PEERS_BIN / "python", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def json_of(response: httpx.Response) -> Any:
    """The body as JSON, numbers as they stand there."""
    return json.loads(response.content)
