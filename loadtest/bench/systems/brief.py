"""The brief's own design (brief_design.py) under uvicorn, with a Redis of its own."""

from __future__ import annotations

import contextlib
from pathlib import Path
from urllib.parse import urlencode

from tests.support.redis_server import redis_running

from ..given import Given
from ..workload import Question
from .base import PEERS_BIN, Ask, System, peer_version


class Brief(System):
    """SQL as a parameter: its `execute_query` takes a text."""

    name = "brief"
    title = "the brief's own design"
    given = (
        "the models as Parquet files, a view for each, read by its pool of connections; a Redis of its own (1 h to live); "
        "one uvicorn process with uvloop and httptools, no access log"
    )

    def __init__(self, folder: Path, given: Given) -> None:
        super().__init__(folder)
        self._given = given
        self._stack = contextlib.ExitStack()
        self.version = f"DuckDB {peer_version('duckdb')}, pandas {peer_version('pandas')}"

    def start(self) -> None:
        """Redis, then the application."""
        self._redis = self._stack.enter_context(redis_running())
        command = [
            str(PEERS_BIN / "python"),
            "-m",
            "uvicorn",
            "loadtest.bench.brief_design:app",
            "--port",
            str(self.port),
        ]
        options = ["--no-access-log", "--log-level", "error", "--loop", "uvloop", "--http", "httptools"]
        places = {"BENCH_PARQUET": str(self._given.folder), "BENCH_REDIS_PORT": str(self._redis.port)}
        self._run([*command, *options], "/docs", **places)

    def ask(self, question: Question) -> Ask:
        """The SQL in the query string."""
        return Ask("/api/v1/chat?" + urlencode({"query": question.sql()}))

    def forget(self) -> None:
        """Empty its Redis."""
        self._redis.client.flushall()

    def counted(self) -> dict[str, float]:
        """With Redis' processor seconds."""
        redis_cpu = self._redis.client.info("cpu")
        spent = float(redis_cpu["used_cpu_user"]) + float(redis_cpu["used_cpu_sys"])
        return super().counted() | {"cpu_redis_seconds": spent}

    def stop(self) -> None:
        """Both."""
        super().stop()
        self._stack.close()
