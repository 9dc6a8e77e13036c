"""This service as production runs it: a key file and keys that are sent, limits, metrics, request log, audit log, Redis."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from urllib.parse import urlencode

import httpx
from bi_query.access import Role
from bi_query.keys import KeyFile

from tests.support.redis_server import redis_running
from tests.support.service import Service, running

from ..measure import CONNECTIONS, process_seconds
from ..workload import Question
from .base import Ask, Rows, System, json_of

# Keys carry limits of their own: the service's stays at its default, and every request is counted against its client's.
OWN_LIMIT = "1000000000/minute"


class ThisService(System):
    """`bi-query serve` with a real Redis. With `memory_bytes` 0 there is no memory tier: every hit comes from Redis."""

    def __init__(
        self, folder: Path, snapshot_dir: Path, *, name: str = "service", memory_bytes: int | None = None
    ) -> None:
        super().__init__(folder)
        self.name = name
        tiers = "memory and Redis" if memory_bytes is None else "Redis alone"
        self.title = "this service" if memory_bytes is None else "this service, memory tier off"
        self.given = (
            f"the published snapshot; cached in {tiers}; default settings, one process, three running queries a core; "
            f"a key file, {CONNECTIONS} keys sent in turn (readers with limits of their own), request log, audit log, "
            "metrics, ETag"
        )
        self._snapshot_dir = snapshot_dir
        self._memory_bytes = memory_bytes
        self._stack = contextlib.ExitStack()

    def start(self) -> None:
        """Keys, Redis, then the service."""
        file = self.folder / f"{self.name}-keys.json"
        self._keys = itertools.cycle(KeyFile(file).add("bench", Role.READER, CONNECTIONS, rate_limit=OWN_LIMIT))
        self._admin = KeyFile(file).add("bench-admin", Role.ADMIN, rate_limit=OWN_LIMIT)[0]
        self.redis = self._stack.enter_context(redis_running())
        self.service: Service = self._stack.enter_context(
            running(
                self._snapshot_dir,
                rate_limit=None,
                keys_file=file,
                audit_log=self.folder / f"{self.name}-audit.log",
                redis_url=self.redis.url,
                cache_memory_bytes=self._memory_bytes,
            )
        )
        self.port, self.url = self.service.port, self.service.url
        self._client = self.service.client

    def ask(self, question: Question) -> Ask:
        """The named query; the next user asks."""
        target = f"/api/v1/queries/{question.kind}?{urlencode(question.asked)}"
        return Ask(target, headers={"X-API-Key": next(self._keys)})

    def body(self, question: Question) -> bytes:
        """The answer's bytes."""
        ask = self.ask(question)
        response = self._client.get(ask.target, headers=dict(ask.headers))
        assert response.status_code == 200, response.text
        return response.content

    def rows(self, response: httpx.Response) -> Rows:
        """Arrays to records."""
        document = json_of(response)
        names = [column["name"] for column in document["columns"]]
        return [dict(zip(names, row, strict=True)) for row in document["rows"]]

    def forget(self) -> None:
        """Invalidate everything, in both tiers."""
        answer = self._client.delete("/api/v1/cache", params={"pattern": "*"}, headers={"X-API-Key": self._admin})
        assert answer.status_code == 200, answer.text

    def counted(self) -> dict[str, float]:
        """Its own counters that say where time went; take the difference of two readings."""
        names = {
            "engine_runs": "bi_engine_execution_seconds_count",
            "engine_seconds": "bi_engine_execution_seconds_sum",
            "wait_seconds": "bi_engine_wait_seconds_sum",
        }
        counted = {short: self.service.metric(name) for short, name in names.items()}
        for result, tier in (("hit", "memory"), ("hit", "redis"), ("miss", "none")):
            counted[f"{result}_{tier}"] = self.service.metric("bi_cache_requests_total", result=result, tier=tier)
        redis_cpu = self.redis.client.info("cpu")
        counted["cpu_redis_seconds"] = float(redis_cpu["used_cpu_user"]) + float(redis_cpu["used_cpu_sys"])
        return counted | {"cpu_system_seconds": process_seconds(self.service.process.pid)}

    def stop(self) -> None:
        """Both."""
        self._stack.close()
