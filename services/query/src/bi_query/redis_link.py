"""The line to Redis: a client that fails fast, a circuit breaker, and a way to ask that never raises and never cancels.

redis-py closes a connection whose command is cancelled, but a cancellation that lands while the connection is being given
back loses its place in the pool for good. So commands run in tasks of their own, bounded by the socket's time-outs, and a
caller that leaves just stops waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import redis.asyncio as aioredis
from prometheus_client import Gauge
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from .metrics import Metrics
from .settings import Settings

logger = logging.getLogger(__name__)

PREFIX = "bi:"
_FAILURES_TO_OPEN = 3
_OPEN_SECONDS_FIRST = 0.5
_OPEN_SECONDS_MOST = 15.0
_PROBE_TTL_MS = 10_000

_Result = TypeVar("_Result")


class CircuitBreaker:
    """Closed, or open until a moment; after it one caller at a time may probe. Waits double up to a bound."""

    def __init__(self, is_open: Gauge | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._gauge = is_open
        self._clock = clock
        self._failures = 0
        self._open_seconds = _OPEN_SECONDS_FIRST
        self._open_until: float | None = None
        self._probing = False

    def allows(self) -> bool:
        """Whether to ask now. Letting a probe through pushes the next one back."""
        if self._open_until is None:
            return True
        if self._clock() < self._open_until:
            return False
        self._open_until = self._clock() + self._open_seconds
        self._probing = True
        return True

    @property
    def is_open(self) -> bool:
        """Whether Redis is considered gone."""
        return self._open_until is not None

    def succeeded(self) -> None:
        """Close."""
        if self._open_until is not None:
            logger.info("redis answers again; the cache's shared tier is back")
            if self._gauge is not None:
                self._gauge.set(0)
        self._failures, self._open_until, self._open_seconds, self._probing = 0, None, _OPEN_SECONDS_FIRST, False

    def failed(self) -> None:
        """Count; open after a few in a row, longer each time a probe fails."""
        self._failures += 1
        if self._open_until is None:
            if self._failures < _FAILURES_TO_OPEN:
                return
            logger.warning("redis does not answer; serving without the cache's shared tier")
        elif self._probing:
            self._open_seconds = min(self._open_seconds * 2, _OPEN_SECONDS_MOST)
        else:
            return  # asked before the circuit opened: it says nothing new, and must not lengthen the wait
        self._probing = False
        self._open_until = self._clock() + self._open_seconds * random.uniform(0.8, 1.2)  # noqa: S311 - spread, not secrecy
        if self._gauge is not None:
            self._gauge.set(1)


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
    """One client behind one breaker. While the circuit is open nobody waits for Redis but `probe`."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.client = connect(settings)
        self._breaker = CircuitBreaker(metrics.cache_redis_circuit_open)
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
