"""The Redis tier: shared entries, leases for single flight across processes, and invalidation messages.

Redis can only make the service faster. No method raises because of Redis, whatever it answers; failures are counted, and
while the circuit is open nothing is asked of it (see `redis_link`).

An invalidation first changes the epoch, then deletes, then tells every process. A lease carries the epoch it began under,
and an answer is stored only while that still holds: one computed before an invalidation cannot land after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from .entries import CacheKey, CorruptEntry, Entry, label_of
from .invalidation import Glob, compile_glob, literal_prefix
from .metrics import Metrics
from .redis_link import PREFIX, Link, connect
from .settings import Settings
from .unsent import LARGE_BYTES

logger = logging.getLogger(__name__)

_ENTRY = PREFIX + "entry:"
_LOCK = PREFIX + "lock:"
_EPOCH = PREFIX + "epoch"
_CHANNEL = PREFIX + "invalidate"
_SCAN_COUNT = 500
_DELETE_SECONDS = 10.0
_SILENCE_SECONDS = 10.0
_CONFIRM_SECONDS = 2.0
_TEND_SECONDS = 0.1
_RESEND_SECONDS = 1.0
_MAX_UNSENT = 1000
_LEAST_BODY_BYTES = 16 * 1024 * 1024
_NO_EPOCH = b""
_ACQUIRE = """
if not redis.call('set', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return false end
return redis.call('get', KEYS[2]) or ''
"""
_STORE = """
if (redis.call('get', KEYS[2]) or '') ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"
_RENEW = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0"


@dataclass(frozen=True)
class Lease:
    """The right to compute a key for every process; `epoch` is the state of invalidations it was given under."""

    token: str
    epoch: bytes


class RedisTier:
    """Shared entries, leases and invalidation. `on_invalidate(glob)` runs for other processes' invalidations."""

    def __init__(self, settings: Settings, metrics: Metrics, on_invalidate: Callable[[Glob | None], object]) -> None:
        self._settings = settings
        self._metrics = metrics
        self._on_invalidate = on_invalidate
        # A result ends with the row that makes it too large: that one may be large, too.
        self._max_body_bytes = max(2 * settings.max_result_bytes, _LEAST_BODY_BYTES)
        self._link = Link(settings, metrics, metrics.cache_redis_circuit_open)
        self._origin = f"{random.getrandbits(64):016x}"
        self._unsent: dict[str, Glob] = {}

    @property
    def is_available(self) -> bool:
        """False while the circuit is open."""
        return self._link.is_up

    async def get(self, key: CacheKey) -> Entry | None:
        """The entry under `key`; None when there is none, Redis is gone, or what it holds is rubbish."""
        data = await self._link.ask("get", lambda: self._read(_ENTRY + key.text), None)
        if data is None or any(glob.fullmatch(key.label) for glob in self._unsent.values()):
            return None
        try:
            if len(data) < LARGE_BYTES:
                return Entry.load(key, data, self._max_body_bytes)
            return await asyncio.to_thread(Entry.load, key, data, self._max_body_bytes)
        except CorruptEntry as error:
            self._link.count_error("get", error)
            logger.warning("redis holds a damaged entry; ignoring it", extra={"fields": {"error": str(error)}})
            return None

    async def _read(self, name: str) -> bytes | None:
        return _bytes_or_none(await self._link.client.get(name))

    async def set(self, key: CacheKey, entry: Entry, epoch: bytes) -> None:
        """Store until the entry may not even be served stale, unless something was invalidated since `epoch`."""
        ttl_ms = int((entry.stale_until - time.time()) * 1000)
        if ttl_ms > 0:
            data = entry.dump(key)
            await self._link.ask(
                "set", lambda: self._eval(_STORE, (_ENTRY + key.text, _EPOCH), epoch, data, ttl_ms), None
            )

    async def _eval(self, script: str, names: tuple[str, ...], *arguments: str | bytes | int) -> Any:
        return await self._link.client.eval(script, len(names), *names, *arguments)

    async def epoch(self) -> bytes | None:
        """The state of invalidations; None when Redis cannot say."""
        return await self._link.ask("get", self._epoch, None)

    async def _epoch(self) -> bytes:
        return await self._read(_EPOCH) or _NO_EPOCH

    async def lock(self, key: CacheKey, token: str, lease_ms: int) -> Lease | Literal["taken", "unknown"]:
        """Try to become the one process that computes `key`."""

        async def acquire() -> Lease | Literal["taken", "unknown"]:
            epoch = _bytes_or_none(await self._eval(_ACQUIRE, (_LOCK + key.text, _EPOCH), token, lease_ms))
            return "taken" if epoch is None else Lease(token, epoch)

        return await self._link.ask("lock", acquire, "unknown")

    async def renew(self, key: CacheKey, token: str, lease_ms: int) -> None:
        """Keep the lease while computing."""
        await self._link.ask("lock", lambda: self._eval(_RENEW, (_LOCK + key.text,), token, lease_ms), None)

    async def unlock(self, key: CacheKey, token: str) -> None:
        """Give the lease back if it is still ours."""
        await self._link.ask("lock", lambda: self._eval(_RELEASE, (_LOCK + key.text,), token), None)

    async def is_locked(self, key: CacheKey) -> bool:
        """Whether some process still computes `key`."""
        return bool(await self._link.ask("lock", lambda: self._link.client.exists(_LOCK + key.text), 0))

    async def invalidate(self, pattern: str) -> int | None:
        """Delete entries whose label matches and tell every process. None: Redis is away; done when it is back."""
        removed = await self._link.ask("delete", lambda: self._delete(pattern), None, _DELETE_SECONDS + 1)
        if removed is None:
            if len(self._unsent) >= _MAX_UNSENT:
                self._unsent, pattern = {}, "*"
            self._unsent[pattern] = compile_glob(pattern)
        return removed

    async def _delete(self, pattern: str) -> int | None:
        client, glob, deadline = self._link.client, compile_glob(pattern), time.monotonic() + _DELETE_SECONDS
        await client.set(_EPOCH, f"{random.getrandbits(64):016x}")
        removed = 0
        scan = client.scan_iter(match=f"{_ENTRY}*:{_escaped(literal_prefix(pattern))}*", count=_SCAN_COUNT)
        async for names in _batches(scan):
            if time.monotonic() > deadline:
                raise TimeoutError("deleting takes too long")
            doomed = [
                name for name in names if glob.fullmatch(label_of(name.decode(errors="replace").removeprefix(_ENTRY)))
            ]
            if doomed:
                removed += int(await client.unlink(*doomed))
        await client.publish(_CHANNEL, orjson.dumps({"origin": self._origin, "pattern": pattern}))
        return removed

    async def tend(self) -> None:
        """Probe while the circuit is open, and send the invalidations that Redis missed; for ever."""
        while True:
            await asyncio.sleep(_TEND_SECONDS)
            await self._link.probe()
            if self._link.is_up and self._unsent and not await self._send_missed():
                await asyncio.sleep(_RESEND_SECONDS)

    async def _send_missed(self) -> bool:
        for pattern in list(self._unsent):
            if await self.invalidate(pattern) is None:
                return False
            self._unsent.pop(pattern, None)
        return True

    async def listen(self) -> None:
        """Apply other processes' invalidations for ever; reconnects by itself.

        Messages may have been missed while disconnected, so every reconnection drops the whole memory tier.
        """
        missed = False
        while True:
            client = connect(self._settings, socket_timeout=None, socket_keepalive=True)
            try:
                async with client.pubsub() as pubsub:
                    await self._subscribe(pubsub)
                    if missed:
                        self._on_invalidate(None)
                    await self._receive(pubsub)
            except Exception as error:  # rubbish can surface as anything, and the listener must outlive it
                self._link.count_error("listen", error)
            finally:
                with contextlib.suppress(Exception):
                    await client.aclose()
            missed = True
            await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311 - spread, not secrecy

    async def _subscribe(self, pubsub: Any) -> None:
        """Subscribe, and wait until Redis says so: what is published from then on arrives."""
        async with asyncio.timeout(_CONFIRM_SECONDS):
            await pubsub.subscribe(_CHANNEL)
            message = None
            while message is None or message["type"] != "subscribe":
                message = await pubsub.get_message(timeout=_CONFIRM_SECONDS)

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

    def _apply(self, message: dict[str, Any]) -> None:
        if message.get("type") != "message":
            return
        try:
            document = orjson.loads(message["data"])
            origin, pattern = document["origin"], str(document["pattern"])
        except (ValueError, KeyError, TypeError) as error:
            self._link.count_error("listen", error)
            return
        if origin != self._origin:
            self._metrics.cache_invalidations.labels("remote").inc()
            self._on_invalidate(compile_glob(pattern))

    async def close(self) -> None:
        """Close the connections."""
        await self._link.close()


def _bytes_or_none(answer: object) -> bytes | None:
    if answer is None or isinstance(answer, bytes):
        return answer
    raise TypeError(f"redis answered with {type(answer).__name__}")


def _escaped(text: str) -> str:
    return "".join("\\" + character if character in "\\[]^*?" else character for character in text)


async def _batches(names: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    batch: list[bytes] = []
    async for name in names:
        batch.append(name)
        if len(batch) >= _SCAN_COUNT:
            yield batch
            batch = []
    if batch:
        yield batch
