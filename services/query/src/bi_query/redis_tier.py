"""The Redis tier: shared entries, locks for single flight across processes, and invalidation messages.

Redis can only make the service faster. Every operation has a short time-out and no retries; failures are counted; after a
few in a row a circuit breaker stops asking and tries again later by itself. No method raises because of Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson
import redis.asyncio as aioredis
from prometheus_client import Gauge
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from .entries import CacheKey, CorruptEntry, Entry
from .metrics import Metrics
from .settings import Settings

logger = logging.getLogger(__name__)

PREFIX = "bi:"
_ENTRY = PREFIX + "entry:"
_LOCK = PREFIX + "lock:"
_CHANNEL = PREFIX + "invalidate"
_FAILURES_TO_OPEN = 3
_OPEN_SECONDS_FIRST = 0.5
_OPEN_SECONDS_MOST = 15.0
_SCAN_COUNT = 500
_DELETE_SECONDS = 10.0
_SILENCE_SECONDS = 10.0
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"
_RENEW = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0"

_Result = TypeVar("_Result")
# What a dead, slow or insane server makes redis-py raise; parsing garbage surfaces as the built-in ones.
_FAILURES = (RedisError, OSError, asyncio.TimeoutError, ValueError, IndexError, TypeError, AttributeError, KeyError)


class CircuitBreaker:
    """Closed, or open until a moment; after it one caller at a time may probe. Waits double up to a bound."""

    def __init__(self, is_open: Gauge | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._gauge = is_open
        self._clock = clock
        self._failures = 0
        self._open_seconds = _OPEN_SECONDS_FIRST
        self._open_until: float | None = None

    def allows(self) -> bool:
        """Whether to ask now. Letting a probe through pushes the next one back."""
        if self._open_until is None:
            return True
        if self._clock() < self._open_until:
            return False
        self._open_until = self._clock() + self._open_seconds
        return True

    @property
    def is_open(self) -> bool:
        """Whether Redis is considered gone."""
        return self._open_until is not None

    def succeeded(self) -> None:
        """Close."""
        if self._open_until is not None:
            logger.info("redis answers again; the cache's shared tier is back")
        self._failures, self._open_until, self._open_seconds = 0, None, _OPEN_SECONDS_FIRST
        if self._gauge is not None:
            self._gauge.set(0)

    def failed(self) -> None:
        """Count; open after a few in a row, longer each time a probe fails."""
        self._failures += 1
        if self._failures < _FAILURES_TO_OPEN:
            return
        if self._open_until is None:
            logger.warning("redis does not answer; serving without the cache's shared tier")
        else:
            self._open_seconds = min(self._open_seconds * 2, _OPEN_SECONDS_MOST)
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
        **options,
    )
    return aioredis.Redis.from_pool(pool)


class RedisTier:
    """Shared entries, locks and invalidation. `on_invalidate(pattern)` runs for other processes' invalidations."""

    def __init__(self, settings: Settings, metrics: Metrics, on_invalidate: Callable[[str | None], object]) -> None:
        self._settings = settings
        self._metrics = metrics
        self._on_invalidate = on_invalidate
        self._client = connect(settings)
        self._breaker = CircuitBreaker(metrics.cache_redis_circuit_open)
        self._origin = f"{random.getrandbits(64):016x}"
        self._unsent: list[str] = []
        self._timeout_seconds = settings.redis_timeout_seconds
        metrics.cache_redis_configured.set(1)

    @property
    def is_available(self) -> bool:
        """False while the circuit is open."""
        return not self._breaker.is_open

    async def _ask(
        self,
        operation: str,
        call: Callable[[], Awaitable[Any]],
        otherwise: _Result,
        timeout_seconds: float | None = None,
    ) -> _Result | Any:
        """`call()` within the time-out, or `otherwise`; feeds the breaker and the error counter."""
        if not self._breaker.allows():
            return otherwise
        try:
            async with asyncio.timeout(timeout_seconds or self._timeout_seconds * 2):
                result = await call()
        except _FAILURES as error:
            self._metrics.cache_redis_errors.labels(operation).inc()
            logger.debug("redis %s failed: %s", operation, error)
            self._breaker.failed()
            return otherwise
        self._breaker.succeeded()
        return result

    async def get(self, key: CacheKey) -> Entry | None:
        """The entry under `key`; None when there is none, Redis is gone, or what it holds is rubbish."""
        data = await self._ask("get", lambda: self._client.get(_ENTRY + key.text), None)
        if data is None:
            return None
        try:
            return Entry.load(key, data)
        except CorruptEntry as error:
            self._metrics.cache_redis_errors.labels("get").inc()
            logger.warning("redis holds a damaged entry; ignoring it", extra={"fields": {"error": str(error)}})
            return None

    async def set(self, key: CacheKey, entry: Entry) -> None:
        """Store until the entry may not even be served stale."""
        ttl_ms = int((entry.stale_until - time.time()) * 1000)
        if ttl_ms > 0:
            data = entry.dump(key)
            await self._ask("set", lambda: self._client.set(_ENTRY + key.text, data, px=ttl_ms), None)

    async def lock(self, key: CacheKey, token: str, lease_ms: int) -> bool | None:
        """Try to become the one process that computes `key`. None: Redis cannot say."""
        call = lambda: self._client.set(_LOCK + key.text, token, nx=True, px=lease_ms)  # noqa: E731 - one-line thunk
        answer: object = await self._ask("lock", call, "unknown")
        return None if answer == "unknown" else bool(answer)

    async def renew(self, key: CacheKey, token: str, lease_ms: int) -> None:
        """Keep the lock while computing."""
        await self._ask("lock", lambda: self._client.eval(_RENEW, 1, _LOCK + key.text, token, lease_ms), None)

    async def unlock(self, key: CacheKey, token: str) -> None:
        """Give the lock back if it is still ours."""
        await self._ask("lock", lambda: self._client.eval(_RELEASE, 1, _LOCK + key.text, token), None)

    async def is_locked(self, key: CacheKey) -> bool:
        """Whether some process still computes `key`."""
        return bool(await self._ask("lock", lambda: self._client.exists(_LOCK + key.text), 0))

    async def invalidate(self, label_pattern: str) -> int | None:
        """Delete matching entries and tell every process. None: Redis is away; it is done when Redis is back."""
        removed = await self._ask("delete", lambda: self._delete(label_pattern), None, _DELETE_SECONDS)
        if removed is None:
            self._unsent.append(label_pattern)
        return removed

    async def _delete(self, label_pattern: str) -> int:
        removed = 0
        pattern = f"{_ENTRY}*:{label_pattern}"
        async for keys in _batches(self._client.scan_iter(match=pattern, count=_SCAN_COUNT)):
            removed += await self._client.unlink(*keys)
        message = orjson.dumps({"origin": self._origin, "pattern": label_pattern})
        await self._client.publish(_CHANNEL, message)
        return removed

    async def listen(self) -> None:
        """Apply other processes' invalidations for ever; reconnects by itself.

        Messages may have been missed while disconnected, so every (re)connection drops the whole memory tier.
        """
        first = True
        while True:
            client = connect(self._settings, socket_timeout=None, socket_keepalive=True)
            try:
                async with client.pubsub() as pubsub:
                    async with asyncio.timeout(2):
                        await pubsub.subscribe(_CHANNEL)
                    if not first:
                        self._on_invalidate(None)
                    first = False
                    await self._resend()
                    await self._receive(pubsub)
            except _FAILURES as error:
                self._metrics.cache_redis_errors.labels("listen").inc()
                logger.debug("redis subscription lost: %s", error)
                first = False
            finally:
                with contextlib.suppress(*_FAILURES):
                    await client.aclose()
            await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311 - spread, not secrecy

    async def _receive(self, pubsub: Any) -> None:
        """Handle messages until the connection breaks or stays silent although pinged."""
        pinged = False
        while True:
            message = await pubsub.get_message(timeout=_SILENCE_SECONDS)
            if message is not None:
                pinged = False
                self._apply(message)
            elif pinged:
                raise OSError("the subscription is silent")
            else:
                await pubsub.ping()
                pinged = True

    async def _resend(self) -> None:
        pending, self._unsent = self._unsent, []
        for pattern in pending:
            await self.invalidate(pattern)

    def _apply(self, message: dict[str, Any]) -> None:
        if message.get("type") != "message":
            return
        try:
            document = orjson.loads(message["data"])
            origin, pattern = document["origin"], str(document["pattern"])
        except (ValueError, KeyError, TypeError):
            self._metrics.cache_redis_errors.labels("listen").inc()
            return
        if origin != self._origin:
            self._metrics.cache_invalidations.labels("remote").inc()
            self._on_invalidate(pattern)

    async def close(self) -> None:
        """Close the connections."""
        with contextlib.suppress(*_FAILURES):
            await self._client.aclose()


async def _batches(keys: Any) -> Any:
    batch: list[bytes] = []
    async for key in keys:
        batch.append(key)
        if len(batch) >= _SCAN_COUNT:
            yield batch
            batch = []
    if batch:
        yield batch
