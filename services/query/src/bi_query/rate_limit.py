"""How often: slowapi's limiter, keyed on the client, one bucket per route template, shared between replicas.

slowapi's own ways in are not used, each for a measured reason: its middleware and decorators skip routes of included
routers (slowapi#281), key on the path's value, and talk to Redis synchronously on the event loop (slowapi#55). Here its
`Limiter` counts in memory, in microseconds; a background task adds up the replicas' counts in Redis every fraction of a
second. With Redis away the local limit holds.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from limits import RateLimitItem, parse_many
from limits.storage import Storage
from redis.exceptions import RedisError
from slowapi import Limiter

from .circuit import CircuitBreaker
from .errors import RateLimited
from .metrics import Metrics
from .redis_link import PREFIX, connect
from .settings import Settings

logger = logging.getLogger(__name__)

_SYNC_SECONDS = 0.2
_MAX_BUCKETS = 200_000
_ADD = """
local value = redis.call('incrby', KEYS[1], ARGV[1])
if redis.call('pttl', KEYS[1]) < 0 then redis.call('pexpire', KEYS[1], ARGV[2]) end
return {value, redis.call('pttl', KEYS[1])}
"""


class _Bucket(NamedTuple):
    """A client's hits on a route under one limit; `key` as slowapi's limiter makes it."""

    key: str
    item: RateLimitItem
    amount: int
    seconds: int


@lru_cache(maxsize=65_536)
def _buckets(limits: str, route: str, client: str) -> tuple[_Bucket, ...]:
    """By the limits' text: hashing a limit itself, at each request, would take longer than counting the hit."""
    found = [_Bucket(item.key_for(route, client), item, item.amount, item.get_expiry()) for item in _items(limits)]
    return tuple({bucket.key: bucket for bucket in found}.values())  # a limit that is named twice is counted once


@lru_cache(maxsize=1024)
def _items(limits: str) -> tuple[RateLimitItem, ...]:
    return tuple(parse_many(limits))


@dataclass
class _Window:
    count: int
    expires_at: float  # on the monotonic clock: one that is set back must not make a minute last an hour
    unshared: int = 0


class WindowStorage(Storage):
    """Fixed windows in memory, for one event loop; `unshared` hits wait there for the next exchange with Redis."""

    STORAGE_SCHEME = ["bi-window"]  # noqa: RUF012 - the base class declares it so

    def __init__(
        self, uri: str | None = None, wrap_exceptions: bool = False, max_buckets: int = _MAX_BUCKETS, **_: str
    ) -> None:
        super().__init__(uri, wrap_exceptions=wrap_exceptions)
        self._max_buckets = max_buckets
        self.windows: dict[str, _Window] = {}
        self.dirty: set[str] = set()

    @property
    def base_exceptions(self) -> type[Exception]:
        """Nothing here fails."""
        return KeyError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count `amount` more hits of `key`'s window of `expiry` seconds; the count after."""
        now = time.monotonic()
        window = self.windows.get(key)
        if window is None or window.expires_at <= now:
            if len(self.windows) >= self._max_buckets:
                self.forget_expired(now)
            window = self.windows[key] = _Window(0, now + expiry)
        window.count += amount
        window.unshared += amount
        self.dirty.add(key)
        return window.count

    def get(self, key: str) -> int:
        """Hits in the current window."""
        window = self.windows.get(key)
        return window.count if window is not None and window.expires_at > time.monotonic() else 0

    def get_expiry(self, key: str) -> float:
        """When the window ends (seconds since the epoch)."""
        return time.time() + self.seconds_left(key)

    def seconds_left(self, key: str) -> float:
        """Until the window ends; 0 without one."""
        window = self.windows.get(key)
        return window.expires_at - time.monotonic() if window is not None else 0.0

    def check(self) -> bool:
        """Memory is always there."""
        return True

    def reset(self) -> int | None:
        """Forget everything."""
        count = len(self.windows)
        self.windows.clear()
        self.dirty.clear()
        return count

    def clear(self, key: str) -> None:
        """Forget one bucket."""
        self.windows.pop(key, None)

    def forget_expired(self, now: float) -> None:
        """Drop windows that ended; beyond the bound, the oldest tenth too, so that this is not due again at once."""
        self.windows = {key: window for key, window in self.windows.items() if window.expires_at > now}
        if len(self.windows) >= self._max_buckets:
            for key in list(itertools.islice(self.windows, max(1, self._max_buckets // 10))):
                del self.windows[key]
        self.dirty &= self.windows.keys()


class Quota(NamedTuple):
    """What a client may still do: the header values of one answer."""

    limit: int
    remaining: int
    reset_seconds: int
    window_seconds: int

    def headers(self) -> list[tuple[bytes, bytes]]:
        """`RateLimit-*` headers (IETF draft-ietf-httpapi-ratelimit-headers, the widely read three-field form)."""
        return [
            (b"ratelimit-limit", b"%d" % self.limit),
            (b"ratelimit-remaining", b"%d" % self.remaining),
            (b"ratelimit-reset", b"%d" % self.reset_seconds),
            (b"ratelimit-policy", b"%d;w=%d" % (self.limit, self.window_seconds)),
        ]


class ClientLimiter(Limiter):
    """slowapi's limiter, asked per (route template, client)."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no config file is wanted: slowapi would read any .env it finds
            super().__init__(
                key_func=lambda: "",
                default_limits=[settings.rate_limit],
                storage_uri="bi-window://",
                config_filename="",
                key_style="endpoint",
            )
        self._metrics = metrics
        self._settings = settings
        for text in (settings.rate_limit, *settings.rate_limit_routes.values()):
            parse_many(text)  # a ValueError says what is wrong, before the first request

    @property
    def windows(self) -> WindowStorage:
        """The storage behind the limiter."""
        assert isinstance(self._storage, WindowStorage)  # noqa: S101 - storage_uri above chose it
        return self._storage

    def spend(self, route: str, client: str, own_limit: str | None = None) -> Quota:
        """Take one request off `client`'s quota on `route` (a template). Raises `RateLimited` when there is none left.

        `own_limit` (`count/period`) stands in for the limit of all routes; where the route has a limit by name, both hold.
        """
        tightest: Quota | None = None
        windows = self.windows
        limits = self._settings.rate_limit_routes.get(route)
        if limits is None:
            limits = own_limit or self._settings.rate_limit
        elif own_limit is not None:
            limits = f"{own_limit};{limits}"
        for key, item, amount, seconds in _buckets(limits, route, client):
            # What the limiter's fixed-window strategy does in hit(), with the key made once.
            count = windows.incr(key, seconds)
            reset = max(1, math.ceil(windows.seconds_left(key)))
            quota = Quota(amount, max(0, amount - count), reset, seconds)
            if count > amount:
                self._metrics.rate_limit_rejections.labels(route).inc()
                raise RateLimited(
                    "rate_limited",
                    f"more than {item} from this client; wait {quota.reset_seconds} s, or ask for a higher limit",
                    retry_after_seconds=quota.reset_seconds,
                    extra={"limit": quota.limit, "reset_seconds": quota.reset_seconds},
                    headers=quota.headers(),
                )
            if tightest is None or quota.remaining < tightest.remaining:
                tightest = quota
        assert tightest is not None  # noqa: S101 - parse_many never gives an empty list
        return tightest

    async def share(self) -> None:
        """Exchange counts with the other replicas through Redis, for ever. Redis away: local counts go on."""
        client = connect(self._settings)
        breaker = CircuitBreaker()
        add: Callable[..., object] = client.register_script(_ADD)
        try:
            while True:
                await asyncio.sleep(_SYNC_SECONDS)
                if self.windows.dirty and breaker.allows():
                    try:
                        async with asyncio.timeout(2):
                            await self._exchange(client, add)
                        breaker.succeeded()
                    except (RedisError, OSError, TimeoutError, ValueError, TypeError, IndexError) as error:
                        self._metrics.cache_redis_errors.labels("rate_limit").inc()
                        logger.debug("rate limit counts not shared: %s", error)
                        breaker.failed()
        finally:
            await client.aclose()

    async def _exchange(self, client: object, add: Callable[..., object]) -> None:
        keys = list(self.windows.dirty)[:1000]
        now = time.monotonic()
        # Hits of a window that has ended must not be added to the one that Redis is counting now.
        batch = [
            (key, window, window.unshared)
            for key in keys
            if (window := self.windows.windows.get(key)) is not None and window.expires_at > now
        ]
        async with client.pipeline(transaction=False) as pipe:  # type: ignore[attr-defined]
            for key, window, unshared in batch:
                ttl_ms = max(1, int((window.expires_at - now) * 1000))
                await add(keys=[PREFIX + "rate:" + key], args=[unshared, ttl_ms], client=pipe)  # type: ignore[misc]
            answers = await pipe.execute()
        for (key, window, shared), (total, ttl_ms) in zip(batch, answers, strict=True):
            window.unshared -= shared
            window.count = int(total) + window.unshared
            window.expires_at = time.monotonic() + max(1, int(ttl_ms)) / 1000
            if window.unshared == 0:
                self.windows.dirty.discard(key)
        self.windows.dirty.difference_update(set(keys) - {key for key, _, _ in batch})
