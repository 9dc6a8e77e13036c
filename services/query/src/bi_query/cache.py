"""The cache: freshness, single flight, and the two tiers (memory, then Redis).

Rules, each the cure of a known failure: an entry has separate fresh-until and stale-until times that a refresh never
moves except by storing a new answer; a failed refresh is retried later and the entry still expires; concurrent misses of
one key run once in this process (shared task) and once across processes (Redis lock); waiters share one result or error;
an answer computed before an invalidation is not stored after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from .catalogue import Freshness
from .engine import Answer
from .entries import CacheKey, Entry, compress, make_etag
from .memory_tier import MemoryTier
from .metrics import Metrics
from .redis_tier import RedisTier
from .settings import Settings

CacheResult = Literal["hit", "miss", "stale", "coalesced", "bypass"]
Tier = Literal["memory", "redis", "none"]
Compute = Callable[[], Awaitable[Answer]]

_LEASE_MS = 3000
_POLL_FIRST_SECONDS, _POLL_MOST_SECONDS = 0.01, 0.1
_REFRESH_RETRY_SECONDS = 5.0
_JITTER = 0.1
_REMEMBERED_INVALIDATIONS = 1000


@dataclass(frozen=True)
class Served:
    """An answer and how it was come by; `answer` holds the engine's timings when this call or its flight ran it."""

    entry: Entry
    result: CacheResult
    tier: Tier
    answer: Answer | None = None


class _Flight:
    """One computation and those who wait for it; it is cancelled when the last of them leaves."""

    def __init__(self, task: asyncio.Task[Served]) -> None:
        self.task = task
        self.waiters = 0


class Cache:
    """Answers by key, computing what is missing."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._entry_max_bytes = settings.cache_entry_max_bytes
        self._memory = MemoryTier(settings.cache_memory_bytes, metrics)
        self._redis = RedisTier(settings, metrics, self._forget) if settings.redis_url else None
        self._flights: dict[str, _Flight] = {}
        self._background: set[asyncio.Task[object]] = set()
        self._refresh_after: dict[str, float] = {}
        self._invalidations: deque[tuple[float, re.Pattern[str] | None]] = deque(maxlen=_REMEMBERED_INVALIDATIONS)

    def start(self) -> None:
        """Begin listening for other processes' invalidations."""
        if self._redis is not None:
            self._spawn(self._redis.listen())

    def fresh_in_memory(self, key: CacheKey) -> Entry | None:
        """The hot path: a fresh entry of this process, without awaiting anything. Counts the hit."""
        entry = self._memory.get(key.text)
        if entry is None or time.time() >= entry.fresh_until:
            return None
        self._count(Served(entry, "hit", "memory"))
        return entry

    async def fetch(self, key: CacheKey, freshness: Freshness, compute: Compute, *, bypass: bool = False) -> Served:
        """The answer for `key`, from a tier or from `compute`, whose errors pass through.

        `bypass` computes in any case and stores the new answer. Cancelling the last caller cancels the computation.
        """
        served = await (self._bypass(key, freshness, compute) if bypass else self._fetch(key, freshness, compute))
        self._count(served)
        return served

    async def _fetch(self, key: CacheKey, freshness: Freshness, compute: Compute) -> Served:
        entry = self._memory.get(key.text)
        now = time.time()
        if entry is not None and now < entry.fresh_until:
            return Served(entry, "hit", "memory")
        if entry is not None and now < entry.stale_until:
            self._refresh(key, freshness, compute)
            return Served(entry, "stale", "memory")
        flight = self._flights.get(key.text)
        if flight is not None:
            served = await self._join(key, flight)
            return served if served.tier == "redis" else Served(served.entry, "coalesced", "none", served.answer)
        return await self._join(key, self._launch(key, self._fill(key, freshness, compute)))

    async def _bypass(self, key: CacheKey, freshness: Freshness, compute: Compute) -> Served:
        started = time.monotonic()
        answer = await compute()
        entry = self._make_entry(key, freshness, answer)
        if self._keep(key, entry, started) and self._redis is not None:
            self._spawn(self._redis.set(key, entry))
        return Served(entry, "bypass", "none", answer)

    def _launch(self, key: CacheKey, filling: Awaitable[Served]) -> _Flight:
        flight = _Flight(asyncio.ensure_future(filling))
        self._flights[key.text] = flight
        flight.task.add_done_callback(lambda task: self._landed(key, flight))
        return flight

    def _landed(self, key: CacheKey, flight: _Flight) -> None:
        if self._flights.get(key.text) is flight:
            del self._flights[key.text]
        if not flight.task.cancelled():
            flight.task.exception()  # read it, in case every waiter has left

    async def _join(self, key: CacheKey, flight: _Flight) -> Served:
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.task.done():
                if self._flights.get(key.text) is flight:
                    del self._flights[key.text]  # newcomers must not join what is being cancelled
                flight.task.cancel()

    def _refresh(self, key: CacheKey, freshness: Freshness, compute: Compute) -> None:
        """Recompute a stale entry behind the caller's back: one at a time, and not again right after a failure."""
        if key.text in self._flights or time.monotonic() < self._refresh_after.get(key.text, 0.0):
            return
        flight = self._launch(key, self._compute_once(key, freshness, compute))
        self._spawn(self._watch_refresh(key, flight))

    async def _watch_refresh(self, key: CacheKey, flight: _Flight) -> None:
        try:
            await self._join(key, flight)
            self._refresh_after.pop(key.text, None)
        except Exception:  # the error was logged and counted where it arose; callers have their stale answer
            self._refresh_after[key.text] = time.monotonic() + _REFRESH_RETRY_SECONDS
            while len(self._refresh_after) > _REMEMBERED_INVALIDATIONS:
                del self._refresh_after[next(iter(self._refresh_after))]

    async def _fill(self, key: CacheKey, freshness: Freshness, compute: Compute) -> Served:
        """Ask Redis, else compute."""
        if self._redis is not None:
            entry = await self._from_redis(key)
            if entry is not None:
                if time.time() < entry.fresh_until:
                    return Served(entry, "hit", "redis")
                asyncio.get_running_loop().call_soon(self._refresh, key, freshness, compute)
                return Served(entry, "stale", "redis")
        return await self._compute_once(key, freshness, compute)

    async def _from_redis(self, key: CacheKey) -> Entry | None:
        """A usable entry of the shared tier, copied into this process."""
        assert self._redis is not None  # noqa: S101 - narrows the type; callers checked
        started = time.monotonic()
        entry = await self._redis.get(key)
        if entry is None or time.time() >= entry.stale_until:
            return None
        if not self._invalidated_since(started, key.label):
            self._memory.put(key.text, entry)
        return entry

    async def _compute_once(self, key: CacheKey, freshness: Freshness, compute: Compute) -> Served:
        """Compute under the cross-process lock, or wait for the process that holds it."""
        if self._redis is None or freshness.fresh_seconds <= 0:
            return await self._compute(key, freshness, compute, None)
        token = secrets.token_hex(8)
        delay = _POLL_FIRST_SECONDS
        while True:
            locked = await self._redis.lock(key, token, _LEASE_MS)
            if locked is not False:
                break
            # The holder renews its lease while it works, so a lock that lives means an answer is on its way.
            while await self._redis.is_locked(key):
                await asyncio.sleep(delay)
                delay = min(delay * 1.5, _POLL_MOST_SECONDS)
            entry = await self._from_redis(key)
            if entry is not None and time.time() < entry.fresh_until:
                return Served(entry, "coalesced", "redis")
        if locked:
            entry = await self._from_redis(key)
            if entry is not None and time.time() < entry.fresh_until:
                self._spawn(self._redis.unlock(key, token))
                return Served(entry, "coalesced", "redis")
        return await self._compute(key, freshness, compute, token if locked else None)

    async def _compute(self, key: CacheKey, freshness: Freshness, compute: Compute, token: str | None) -> Served:
        started = time.monotonic()
        renewing = asyncio.ensure_future(self._renew(key, token)) if token else None
        entry: Entry | None = None
        try:
            answer = await compute()
            made = self._make_entry(key, freshness, answer)
            if self._keep(key, made, started):
                entry = made
            return Served(made, "miss", "none", answer)
        finally:
            if renewing is not None:
                renewing.cancel()
            self._spawn(self._share(key, entry, token))

    async def _share(self, key: CacheKey, entry: Entry | None, token: str | None) -> None:
        """Store in Redis, then unlock: waiting processes look for the entry when the lock goes."""
        if self._redis is None:
            return
        if entry is not None:
            await self._redis.set(key, entry)
        if token is not None:
            await self._redis.unlock(key, token)

    async def _renew(self, key: CacheKey, token: str) -> None:
        while self._redis is not None:
            await asyncio.sleep(_LEASE_MS / 3000)
            await self._redis.renew(key, token, _LEASE_MS)

    def _make_entry(self, key: CacheKey, freshness: Freshness, answer: Answer) -> Entry:
        now = time.time()
        # Entries made together should not expire together; jitter only ever shortens.
        fresh_until = now + freshness.fresh_seconds * (1 - random.uniform(0, _JITTER))  # noqa: S311 - spread, not secrecy
        body, compressed = compress(answer.encoded.body)
        return Entry(
            query=key.query,
            label=key.label,
            created_at=now,
            fresh_until=fresh_until,
            stale_until=fresh_until + freshness.stale_seconds,
            etag=make_etag(answer.encoded.body),
            row_count=answer.encoded.row_count,
            truncated=answer.encoded.truncated,
            engine_seconds=answer.engine_seconds + answer.encoded.encode_seconds,
            compressed=compressed,
            body=body,
        )

    def _keep(self, key: CacheKey, entry: Entry, started: float) -> bool:
        """Put into the memory tier if it may be stored at all; whether it may."""
        if entry.stale_until <= time.time() or self._invalidated_since(started, key.label):
            return False
        if len(entry.body) > self._entry_max_bytes:
            self._metrics.cache_rejected_entries.inc()
            return False
        self._memory.put(key.text, entry)
        return True

    async def invalidate(self, pattern: str, scope: Literal["query", "pattern"]) -> tuple[int, int | None]:
        """Forget entries whose label matches the glob (`*` and `?`), here and everywhere.

        Returns entries removed from this process and from Redis; None for Redis when it is off or away (then it is done
        as soon as it is back).
        """
        self._metrics.cache_invalidations.labels(scope).inc()
        removed = self._forget(_redis_glob(pattern))
        if self._redis is None:
            return removed, None
        return removed, await self._redis.invalidate(_redis_glob(pattern))

    @property
    def redis_state(self) -> Literal["off", "ok", "away"]:
        """How the shared tier is."""
        if self._redis is None:
            return "off"
        return "ok" if self._redis.is_available else "away"

    @property
    def has_redis(self) -> bool:
        """Whether a shared tier is configured."""
        return self._redis is not None

    def _forget(self, redis_glob: str | None) -> int:
        compiled = None if redis_glob is None else _compile(redis_glob)
        self._invalidations.append((time.monotonic(), compiled))
        return self._memory.invalidate(compiled)

    def _invalidated_since(self, started: float, label: str) -> bool:
        for when, pattern in reversed(self._invalidations):
            if when < started:
                return False
            if pattern is None or pattern.fullmatch(label):
                return True
        return False

    def _count(self, served: Served) -> None:
        saved = served.entry.engine_seconds if served.result in ("hit", "stale", "coalesced") else 0.0
        self._metrics.count_cache(served.entry.query, served.result, served.tier, saved)

    def _spawn(self, work: Awaitable[object]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Stop background work and close connections."""
        for task in list(self._background):
            task.cancel()
        for task in list(self._background):
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        if self._redis is not None:
            await self._redis.close()


def _redis_glob(pattern: str) -> str:
    """`pattern` with only `*` and `?` special, spelled for Redis, so that both tiers match alike."""
    return re.sub(r"([\\\[\]^])", r"\\\1", pattern)


def _compile(redis_glob: str) -> re.Pattern[str]:
    parts = []
    for token in re.findall(r"\\.|\*|\?|[^\\*?]+", redis_glob, re.DOTALL):
        parts.append(
            {"*": ".*", "?": "."}.get(token) or re.escape(token.removeprefix("\\") if len(token) == 2 else token)
        )
    return re.compile("".join(parts), re.DOTALL)
