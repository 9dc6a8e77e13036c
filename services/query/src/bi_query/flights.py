"""Single flight: one computation of a key at a time, in this process (`Flights`) and across processes (`take_turn`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from .entries import CacheKey, Entry, label_of
from .invalidation import Glob
from .redis_tier import Lease, RedisTier

LEASE_MS = 3000
_POLL_FIRST_SECONDS, _POLL_MOST_SECONDS = 0.01, 0.1
_EMPTY_TURNS = 3

_Result = TypeVar("_Result")


class Flight(Generic[_Result]):
    """One computation and those who wait for it; it is cancelled when the last of them leaves."""

    def __init__(self, key_text: str, task: asyncio.Future[_Result]) -> None:
        self.key_text = key_text
        self.task = task
        self.waiters = 0


class Flights(Generic[_Result]):
    """The computations under way in this process, by key."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight[_Result]] = {}

    def get(self, key_text: str) -> Flight[_Result] | None:
        """The one under way, if any."""
        return self._flights.get(key_text)

    def launch(self, key_text: str, work: Awaitable[_Result]) -> Flight[_Result]:
        """Begin `work`. Somebody must `join` it."""
        flight = self._flights[key_text] = Flight(key_text, asyncio.ensure_future(work))
        flight.task.add_done_callback(lambda task: self._landed(flight))
        return flight

    async def join(self, flight: Flight[_Result]) -> _Result:
        """Wait for its result or error, which all who wait share."""
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.task.done():
                self._remove(flight)  # newcomers must not join what is being cancelled
                flight.task.cancel()

    def detach(self, glob: Glob | None) -> None:
        """Let nobody join those of matching labels (None: all): they began before an invalidation."""
        for text in [text for text in self._flights if glob is None or glob.fullmatch(label_of(text))]:
            del self._flights[text]

    def _landed(self, flight: Flight[_Result]) -> None:
        self._remove(flight)
        if not flight.task.cancelled():
            flight.task.exception()  # read it, in case every waiter has left

    def _remove(self, flight: Flight[_Result]) -> None:
        if self._flights.get(flight.key_text) is flight:
            del self._flights[flight.key_text]


class Renewal:
    """Calls `renew` three times in the length of a lease, until `end`. A timer: most answers are there before the first."""

    def __init__(self, renew: Callable[[], object]) -> None:
        self._renew = renew
        self._loop = asyncio.get_running_loop()
        self._wait()

    def _wait(self) -> None:
        self._timer = self._loop.call_later(LEASE_MS / 3000, self._due)

    def _due(self) -> None:
        self._renew()
        self._wait()

    def end(self) -> None:
        """No more."""
        self._timer.cancel()


Look = Callable[[CacheKey], Awaitable[Entry | None]]


async def take_turn(
    redis: RedisTier, key: CacheKey, token: str, look: Look, most_seconds: float
) -> Entry | Lease | None:
    """The fresh entry another process stored (`look` finds it), or the lease to compute it.

    None means: compute without a lease, because Redis is away, sick, or its holder is at it longer than `most_seconds`.
    """
    deadline = time.monotonic() + most_seconds
    empty_turns = 0
    while empty_turns < _EMPTY_TURNS and time.monotonic() < deadline:
        lease = await redis.lock(key, token, LEASE_MS)
        if lease == "unknown":
            return None
        if lease == "taken":
            # Refused a lease that nobody has: once or twice its holder just ended, more often it is a sick Redis.
            empty_turns += not await _wait_for_holder(redis, key, deadline)
        entry = await look(key)
        if entry is not None:
            return entry
        if isinstance(lease, Lease):
            return lease
    return None


async def _wait_for_holder(redis: RedisTier, key: CacheKey, deadline: float) -> bool:
    """Until the lease is free; whether it was ever seen taken. Its holder renews it while it works."""
    delay, waited = _POLL_FIRST_SECONDS, False
    while time.monotonic() < deadline and await redis.is_locked(key):
        waited = True
        await asyncio.sleep(delay)
        delay = min(delay * 1.5, _POLL_MOST_SECONDS)
    return waited
