"""Large answers in memory, within a budget of bytes: counted from their first rows until nobody holds them any more.

An answer waits in memory for its client to read it, and a client may take its time. How long is `http_protocol`'s to
decide; how much waits is decided here: an answer that does not fit is refused with 503 while it is being made, as soon as
that is known, so the engine computes nothing that cannot be kept. Small answers are never counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from weakref import WeakValueDictionary

from .errors import Overloaded
from .metrics import Metrics

LARGE_BYTES = 256 * 1024
"""From here on an answer is counted and sent in pieces, and packing it takes milliseconds: not on the event loop."""
_RETRY_AFTER_SECONDS = 5


class Claim:
    """What one answer takes of the budget. Keep it beside the bytes: it is given back when nobody has it any more.

    So no way out can forget it: sent, cut, disconnected, failed, cancelled. Any thread may hold it.
    """

    def __init__(self, budget: Unsent) -> None:
        self._budget = budget
        self.bytes = 0

    def grow(self, size: int) -> None:
        """Count `size` bytes in all; nothing while they are few. Raises `Overloaded` when others leave no room."""
        if size >= LARGE_BYTES and size > self.bytes:
            self._budget._take(self, size)

    def settle(self, size: int) -> None:
        """Count exactly `size` bytes, what the answer came to. Raises `Overloaded`."""
        self.grow(size)
        self._budget._give_back(self, self.bytes - (size if size >= LARGE_BYTES else 0))

    def __del__(self) -> None:
        self._budget._give_back(self, self.bytes)


class Held:
    """A large answer's bytes under their claim, shared by all who are being sent the same."""

    def __init__(self, body: bytes, claim: Claim) -> None:
        self.body = body
        self._claim = claim


class Unsent:
    """The budget, and the large answers being sent."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        # Queries' threads take, whoever is last gives back; reentrant, since the collector may end a claim anywhere.
        self._lock = threading.RLock()
        self._held: WeakValueDictionary[str, Held] = WeakValueDictionary()
        self._refusals = metrics.unsent_refusals
        metrics.unsent_max_bytes.set(max_bytes)
        metrics.unsent_bytes.set_function(lambda: self._bytes)

    def claim(self) -> Claim:
        """A claim of nothing yet."""
        return Claim(self)

    def hold(self, etag: str, size: int, make: Callable[[], bytes], claim: Claim | None) -> Held:
        """The bytes to send: those already being sent to others under this tag, else the `size` that `make` gives.

        Raises `Overloaded`, before they are made. `claim` is what they were counted under so far, if they were.
        """
        held = self._held.get(etag)
        if held is None:
            claim = claim or self.claim()
            claim.grow(size)
            held = self._held[etag] = Held(make(), claim)
        return held

    def _take(self, claim: Claim, size: int) -> None:
        with self._lock:
            others = self._bytes - claim.bytes
            # One alone is let through: its bytes are bounded by themselves, as `max_result_bytes` says.
            if others and others + size > self._max_bytes:
                self._refusals.inc()
                raise Overloaded(
                    "unsent_full",
                    "clients have not read their large answers yet and this one does not fit beside them; ask again shortly",
                    retry_after_seconds=_RETRY_AFTER_SECONDS,
                )
            self._bytes, claim.bytes = others + size, size

    def _give_back(self, claim: Claim, size: int) -> None:
        with self._lock:
            self._bytes -= size
            claim.bytes -= size
