"""A real service as a subprocess, on a free port, with polling instead of sleeping."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

_T = TypeVar("_T")
READY_WITHIN_SECONDS = 60.0
UNLIMITED = "1000000000/minute"


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(check: Callable[[], _T], within_seconds: float = 60.0, *, what: str | Callable[[], str] = "") -> _T:
    """Poll `check` until it gives something true; fail saying `what` was waited for, and what was seen last."""
    deadline = time.monotonic() + within_seconds
    last: object = None
    while True:
        try:
            last = result = check()
            if result:
                return result
        except (AssertionError, OSError, httpx.HTTPError, KeyError, ValueError, subprocess.TimeoutExpired) as error:
            last = error
        if time.monotonic() > deadline:
            text = what() if callable(what) else what
            raise AssertionError(f"not within {within_seconds:g} s: {text or check}; last seen: {last!r}")
        time.sleep(0.03)


class Service:
    """One running `bi-query serve`. Settings are given by field name: `max_connections=2`."""

    def __init__(self, snapshot_dir: Path, folder: Path, **settings: object) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        values = {"snapshot_dir": snapshot_dir, "port": self.port, "rate_limit": UNLIMITED, **settings}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BI_")}
        environment |= {
            f"BI_{name.upper()}": value
            if isinstance(value, str)
            else json.dumps(value)
            if isinstance(value, dict)
            else str(value)
            for name, value in values.items()
            if value is not None
        }
        self.client = httpx.Client(base_url=self.url, timeout=60)
        self._out = (folder / "out.log").open("wb")
        self._err = (folder / "err.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bi_query.cli", "serve"],
            env=environment,
            stdout=self._out,
            stderr=self._err,
            stdin=subprocess.DEVNULL,
        )

    def wait_ready(self) -> Service:
        """Until it serves; explains itself if it does not."""
        wait_until(
            self._is_ready, READY_WITHIN_SECONDS, what=lambda: f"a ready service; its log ends\n{self.errors()[-2000:]}"
        )
        return self

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"the service ended with {self.process.returncode}:\n{self.errors()[-2000:]}")
        return self.client.get("/health/ready").status_code == 200

    def get(self, path: str, **options: Any) -> httpx.Response:
        """GET `path`."""
        return self.client.get(path, **options)

    def query(self, name: str, headers: Mapping[str, str] | None = None, /, **params: Any) -> httpx.Response:
        """A named query; None leaves a parameter out."""
        given = {key: value for key, value in params.items() if value is not None}
        return self.client.get(f"/api/v1/queries/{name}", params=given, headers=headers)

    def sql(
        self, sql: str, params: Mapping[str, Any] | None = None, /, fmt: str | None = None, **headers: str
    ) -> httpx.Response:
        """Ad-hoc SQL."""
        body: dict[str, Any] = {"sql": sql} if params is None else {"sql": sql, "params": dict(params)}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post("/api/v1/query", json=body, params={"format": fmt} if fmt else None, headers=named)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that carry `labels`; 0 without any."""
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            match = re.fullmatch(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)", line)
            if match:
                found = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match.group(1) or ""))
                if labels.items() <= found.items():
                    total += float(match.group(2))
        return total

    def log_lines(self) -> list[dict[str, Any]]:
        """The request log so far."""
        return [json.loads(line) for line in (self.folder / "out.log").read_text().splitlines() if line.strip()]

    def errors(self) -> str:
        """Standard error so far."""
        return (self.folder / "err.log").read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def stop(self) -> int:
        """End it politely, then firmly; its exit code."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        self._out.close()
        self._err.close()
        return self.process.returncode


@contextlib.contextmanager
def running(snapshot_dir: Path, **settings: object) -> Iterator[Service]:
    """A ready service for the length of a block."""
    with tempfile.TemporaryDirectory() as folder:
        service = Service(snapshot_dir, Path(folder), **settings)
        try:
            yield service.wait_ready()
        finally:
            service.stop()
