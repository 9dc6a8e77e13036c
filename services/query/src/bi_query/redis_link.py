"""The line to Redis: a client that fails fast behind a circuit breaker, and a way to ask that never raises or cancels.

redis-py closes a connection whose command is cancelled, but a cancellation that lands while the connection is being given
back loses its place in the pool for good. So commands run in tasks of their own, bounded by the socket's time-outs, and a
caller that leaves just stops waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import redis.asyncio as aioredis
from prometheus_client import Gauge
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from .circuit import CircuitBreaker
from .metrics import Metrics
from .settings import Settings

logger = logging.getLogger(__name__)

PREFIX = "bi:"
_PROBE_TTL_MS = 10_000

_Result = TypeVar("_Result")


def connect(settings: Settings, **options: Any) -> aioredis.Redis:
    """A client without retries and with bounded waits; redis-py's defaults spend seconds on a dead server."""
    timeout = settings.redis_timeout_seconds
    pool = aioredis.BlockingConnectionPool.from_url(
        str(settings.redis_url),
        password=settings.redis_password(),
        max_connections=32,
        timeout=timeout,
        socket_connect_timeout=timeout,
        socket_timeout=options.pop("socket_timeout", timeout),
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        # With RESP3 redis-py turns maintenance notifications on, and then no longer looks for left-over replies on a
        # connection it takes from the pool.
        protocol=2,
        **options,
    )
    return aioredis.Redis.from_pool(pool)


class Link:
    """One client behind one breaker. While the circuit is open nobody waits for Redis but `probe`.

    `is_open`: where it shows; the cache's link and no other has the service's gauge.
    """

    def __init__(self, settings: Settings, metrics: Metrics, is_open: Gauge | None = None) -> None:
        self.client = connect(settings)
        self._breaker = CircuitBreaker(is_open, what="redis")
        self._metrics = metrics
        self._timeout_seconds = settings.redis_timeout_seconds * 2
        self._probe_key = f"{PREFIX}probe:{random.getrandbits(64):016x}"
        self._commands: set[asyncio.Task[Any]] = set()
        metrics.cache_redis_configured.set(1)

    @property
    def is_up(self) -> bool:
        """False while the circuit is open."""
        return not self._breaker.is_open

    async def ask(
        self,
        operation: str,
        call: Callable[[], Awaitable[_Result]],
        otherwise: _Result,
        timeout_seconds: float | None = None,
    ) -> _Result:
        """`call()` within the time-out, or `otherwise`; feeds the breaker and the error counter."""
        if self._breaker.is_open:
            return otherwise
        return await self._run(operation, call, otherwise, timeout_seconds or self._timeout_seconds)

    async def _run(
        self, operation: str, call: Callable[[], Awaitable[_Result]], otherwise: _Result, timeout_seconds: float
    ) -> _Result:
        command = asyncio.ensure_future(_awaited(call))
        self._commands.add(command)
        command.add_done_callback(self._ended)
        await asyncio.wait({command}, timeout=timeout_seconds)
        if not command.done():
            self.count_error(operation, TimeoutError(f"no answer within {timeout_seconds:g} s"))
            self._breaker.failed()
            return otherwise
        error = command.exception()
        if error is not None:
            self.count_error(operation, error)
            self._breaker.failed()
            return otherwise
        self._breaker.succeeded()
        return command.result()

    def _ended(self, command: asyncio.Task[Any]) -> None:
        self._commands.discard(command)
        if not command.cancelled():
            command.exception()  # read it, in case its caller has left

    def count_error(self, operation: str, error: BaseException) -> None:
        """One more failed operation."""
        self._metrics.cache_redis_errors.labels(operation).inc()
        logger.debug("redis %s failed: %s", operation, error)

    async def probe(self) -> None:
        """Look whether Redis is back, when it is time to: a write that can be read again, so that rubbish does not pass."""
        if self._breaker.is_open and self._breaker.allows():
            await self._run("get", self._round_trip, None, self._timeout_seconds * 2)

    async def _round_trip(self) -> None:
        value = b"%016x" % random.getrandbits(64)
        await self.client.set(self._probe_key, value, px=_PROBE_TTL_MS)
        if await self.client.get(self._probe_key) != value:
            raise RedisError("redis does not keep what it is given")

    async def close(self) -> None:
        """Close the connections."""
        for command in list(self._commands):
            command.cancel()
        await asyncio.gather(*self._commands, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self.client.aclose()


async def _awaited(call: Callable[[], Awaitable[_Result]]) -> _Result:
    return await call()
