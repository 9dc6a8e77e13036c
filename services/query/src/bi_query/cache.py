"""The cache: freshness, single flight, and the two tiers (memory, then Redis).

Rules, each the cure of a known failure: an entry has separate fresh-until and stale-until times that a refresh never
moves except by storing a new answer; a failed refresh is retried later and the entry still expires; concurrent misses of
one key run once in this process (shared task) and once across processes (Redis lock); waiters share one result or error;
an answer computed before an invalidation is not stored after it.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

from .catalogue import Freshness
from .departure import end
from .engine_call import Answer
from .entries import CacheKey, Entry
from .errors import Overloaded
from .flights import LEASE_MS, Flight, Flights, Renewal, take_turn
from .invalidation import Glob, Invalidations, compile_glob
from .memory_tier import MemoryTier
from .metrics import Metrics
from .redis_tier import Lease, RedisTier
from .settings import Settings
from .unsent import LARGE_BYTES

CacheResult = Literal["hit", "miss", "stale", "coalesced", "bypass"]
Tier = Literal["memory", "redis", "none"]
Compute = Callable[[], Awaitable[Answer]]

_REFRESH_RETRY_SECONDS = 5.0
_JITTER = 0.1
_REMEMBERED_FAILURES = 1000


class Served(NamedTuple):
    """An answer and how it was come by; `answer` holds the engine's timings when this call or its flight ran it."""

    entry: Entry
    result: CacheResult
    tier: Tier
    answer: Answer | None = None


class Cache:
    """Answers by key, computing what is missing."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._entry_max_bytes = settings.cache_entry_max_bytes
        self._memory = MemoryTier(settings.cache_memory_bytes, metrics)
        self._redis = RedisTier(settings, metrics, self._forget) if settings.redis_url else None
        self._flights: Flights[Served] = Flights()
        self._background: set[asyncio.Task[object]] = set()
        self._refresh_after: dict[str, float] = {}
        self._invalidations = Invalidations()
        # The longest a process may rightly hold a lease: its query waits, then runs.
        self._wait_most_seconds = settings.queue_timeout_seconds + settings.query_timeout_seconds

    def start(self) -> None:
        """Begin listening for other processes' invalidations."""
        if self._redis is not None:
            self._spawn(self._redis.listen())
            self._spawn(self._redis.tend())

    def fresh_in_memory(self, key: CacheKey) -> Entry | None:
        """The hot path: a fresh entry of this process, without awaiting anything. Counts the hit.

        None for a large one too: sending that may have to wait for its reader.
        """
        entry = self._memory.get(key.text)
        if entry is None or not entry.is_fresh(time.time()) or entry.raw_bytes >= LARGE_BYTES:
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
        if entry is not None and entry.is_fresh(now):
            return Served(entry, "hit", "memory")
        if entry is not None and entry.is_usable(now):
            self._refresh(key, freshness, compute)
            return Served(entry, "stale", "memory")
        served = await self._fly(key, freshness, compute)
        if served.result == "stale":
            self._refresh(key, freshness, compute)
        return served

    async def _fly(self, key: CacheKey, freshness: Freshness, compute: Compute, *, joins_again: bool = True) -> Served:
        flight = self._flights.get(key.text)
        if flight is None:
            return await self._flights.join(self._flights.launch(key.text, self._fill(key, freshness, compute)))
        try:
            served = await self._flights.join(flight)
        except Overloaded as refusal:
            # There was no room for who asked first, who may not have read what it was sent; for this client there may be.
            if refusal.code == "unsent_full" and joins_again:
                return await self._fly(key, freshness, compute, joins_again=False)
            raise
        return served if served.tier == "redis" else Served(served.entry, "coalesced", "none", served.answer)

    async def _bypass(self, key: CacheKey, freshness: Freshness, compute: Compute) -> Served:
        epoch = await self._redis.epoch() if self._redis is not None else None
        started = time.monotonic()
        answer = await compute()
        entry = _make_entry(key, freshness, answer)
        if self._keep(key, entry, started) and self._redis is not None and epoch is not None:
            self._spawn(self._redis.set(key, entry, epoch))
        return Served(entry, "bypass", "none", answer)

    def _refresh(self, key: CacheKey, freshness: Freshness, compute: Compute) -> None:
        """Recompute a stale entry behind the caller's back: one at a time, and not again right after a failure."""
        if self._flights.get(key.text) is not None or time.monotonic() < self._refresh_after.get(key.text, 0.0):
            return
        flight = self._flights.launch(key.text, self._compute_once(key, freshness, compute))
        self._spawn(self._watch_refresh(key, flight))

    async def _watch_refresh(self, key: CacheKey, flight: Flight[Served]) -> None:
        try:
            await self._flights.join(flight)
            self._refresh_after.pop(key.text, None)
        except Exception:  # the error was logged and counted where it arose; callers have their stale answer
            self._refresh_after[key.text] = time.monotonic() + _REFRESH_RETRY_SECONDS
            while len(self._refresh_after) > _REMEMBERED_FAILURES:
                del self._refresh_after[next(iter(self._refresh_after))]

    async def _fill(self, key: CacheKey, freshness: Freshness, compute: Compute) -> Served:
        """Ask Redis, else compute."""
        if self._redis is None or freshness.fresh_seconds <= 0:
            return await self._compute(key, freshness, compute, None)
        token, started = secrets.token_hex(8), time.monotonic()
        found: Entry | Lease | Literal["none", "unknown"] = "unknown"
        try:
            found = await self._redis.get_or_lock(key, token, LEASE_MS)
        finally:
            if found == "unknown":  # or cancelled
                self._spawn(self._redis.unlock(key, token))
        if isinstance(found, Lease):
            return await self._compute(key, freshness, compute, found)
        if isinstance(found, Entry) and self._adopt(key, found, started):
            return Served(found, "hit" if found.is_fresh(time.time()) else "stale", "redis")
        return await self._compute_once(key, freshness, compute)

    def _adopt(self, key: CacheKey, entry: Entry, asked: float) -> bool:
        """Copy an entry of the shared tier, asked for at `asked`, into this process; whether it is usable at all."""
        if not entry.is_usable(time.time()):
            return False
        if not self._invalidations.since(asked, key.label):
            self._memory.put(key.text, entry)
        return True

    async def _fresh_in_redis(self, key: CacheKey) -> Entry | None:
        assert self._redis is not None  # noqa: S101 - narrows the type; callers checked
        started = time.monotonic()
        entry = await self._redis.get(key)
        if entry is None or not self._adopt(key, entry, started):
            return None
        return entry if entry.is_fresh(time.time()) else None

    async def _compute_once(self, key: CacheKey, freshness: Freshness, compute: Compute) -> Served:
        """Compute under the lease that one process can have, or take what the process that has it stores."""
        if self._redis is None or freshness.fresh_seconds <= 0:
            return await self._compute(key, freshness, compute, None)
        token = secrets.token_hex(8)
        turn: Entry | Lease | None = None
        try:
            turn = await take_turn(self._redis, key, token, self._fresh_in_redis, self._wait_most_seconds)
        finally:
            if not isinstance(turn, Lease):  # cancelled, or not needed: the lease may be ours all the same
                self._spawn(self._redis.unlock(key, token))
        if isinstance(turn, Entry):
            return Served(turn, "coalesced", "redis")
        return await self._compute(key, freshness, compute, turn)

    async def _compute(self, key: CacheKey, freshness: Freshness, compute: Compute, lease: Lease | None) -> Served:
        started = time.monotonic()
        renewal = Renewal(lambda: self._renew(key, lease)) if lease is not None else None
        entry: Entry | None = None
        try:
            answer = await compute()
            made = _make_entry(key, freshness, answer)
            if self._keep(key, made, started):
                entry = made
            return Served(made, "miss", "none", answer)
        finally:
            if renewal is not None:
                renewal.end()
            if lease is not None:
                self._spawn(self._share(key, entry, lease))

    async def _share(self, key: CacheKey, entry: Entry | None, lease: Lease) -> None:
        """Store in Redis, then unlock: waiting processes look for the entry when the lock goes."""
        if self._redis is None:
            return
        if entry is None or not await self._redis.set(key, entry, lease.epoch, lease.token):
            await self._redis.unlock(key, lease.token)

    def _renew(self, key: CacheKey, lease: Lease) -> None:
        if self._redis is not None:
            self._spawn(self._redis.renew(key, lease.token, LEASE_MS))

    def _keep(self, key: CacheKey, entry: Entry, started: float) -> bool:
        """Put into the memory tier if it may be stored at all; whether it may."""
        if entry.stale_until <= time.time() or self._invalidations.since(started, key.label):
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
        removed = self._forget(compile_glob(pattern))
        if self._redis is None:
            return removed, None
        return removed, await self._redis.invalidate(pattern)

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

    def _forget(self, glob: Glob | None) -> int:
        self._invalidations.add(glob)
        self._flights.detach(glob)
        return self._memory.invalidate(glob)

    def _count(self, served: Served) -> None:
        saved = served.entry.engine_seconds if served.result in ("hit", "stale", "coalesced") else 0.0
        self._metrics.count_cache(served.entry.query, served.result, served.tier, saved)

    def _spawn(self, work: Awaitable[object]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Stop background work and close connections."""
        await end(self._background)
        if self._redis is not None:
            await self._redis.close()


def _make_entry(key: CacheKey, freshness: Freshness, answer: Answer) -> Entry:
    now = time.time()
    # Entries made together should not expire together; jitter only ever shortens.
    fresh_until = now + freshness.fresh_seconds * (1 - random.uniform(0, _JITTER))  # noqa: S311 - spread, not secrecy
    return Entry(
        query=key.query,
        label=key.label,
        created_at=now,
        fresh_until=fresh_until,
        stale_until=fresh_until + freshness.stale_seconds,
        etag=answer.packed.etag,
        row_count=answer.encoded.row_count,
        truncated=answer.encoded.truncated,
        engine_seconds=answer.engine_seconds + answer.encoded.encode_seconds,
        compressed=answer.packed.compressed,
        body=answer.packed.body,
    )
