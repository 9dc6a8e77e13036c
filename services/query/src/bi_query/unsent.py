"""Large answers in memory, within a budget of bytes: counted from their first rows until nobody holds them any more.

An answer waits in memory for its client to read it, and a client may take its time. How long is `http_protocol`'s to
decide; how much waits is decided here: an answer that does not fit is refused with 503 while it is being made, as soon as
that is known, so the engine computes nothing that cannot be kept. Small answers are never counted.

One client is sent no more than half of the budget at a time, one answer at least, so that who asks and does not read leaves
room for others. What is made for it is refused as soon as it could not be sent beside that; whoever waits for the same
answer is refused with it, and has it made when they ask again.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from weakref import WeakValueDictionary

from .errors import Overloaded
from .metrics import Metrics

LARGE_BYTES = 256 * 1024
"""From here on an answer is counted and sent in pieces, and packing it takes milliseconds: not on the event loop."""
_RETRY_AFTER_SECONDS = 5
_SHARES = 2
"""One client may be sent this part of the budget at a time."""


class Claim:
    """What one answer takes of the budget. Keep it beside the bytes: it is given back when nobody has it any more.

    So no way out can forget it: sent, cut, disconnected, failed, cancelled. Any thread may hold it.
    """

    def __init__(self, budget: Unsent, client: str) -> None:
        self._budget, self.client = budget, client
        self.bytes = 0

    def grow(self, size: int) -> None:
        """Count `size` bytes in all; nothing while they are few. Raises `Overloaded` when there is no room for them, of the
        budget or of its client's part."""
        if size >= LARGE_BYTES and size > self.bytes:
            self._budget._take(self, size)

    def settle(self, size: int) -> None:
        """Count exactly `size` bytes, what the answer came to. Raises `Overloaded`."""
        self.grow(size)
        self._budget._give_back(self, self.bytes - (size if size >= LARGE_BYTES else 0))

    def __del__(self) -> None:
        self._budget._give_back(self, self.bytes)


class _Whole:
    """A large answer's bytes under their claim, shared by all who are being sent the same."""

    def __init__(self, body: bytes, claim: Claim) -> None:
        self.body = body
        self._claim = claim


class _Share:
    """What one answer takes of its client's part of the budget, given back as a claim is. Raises `Overloaded`."""

    def __init__(self, budget: Unsent, client: str, size: int) -> None:
        self._budget, self._client, self._bytes = budget, client, 0
        budget._take_share(client, size)
        self._bytes = size

    def __del__(self) -> None:
        self._budget._give_share_back(self._client, self._bytes)


class Held:
    """A large answer as one client is sent it, once or several times at once."""

    def __init__(self, whole: _Whole, share: _Share) -> None:
        self._whole, self._share = whole, share

    @property
    def body(self) -> bytes:
        """Its bytes."""
        return self._whole.body


class Unsent:
    """The budget, and the large answers being sent."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        # No call between reading and writing a share: the collector may end another one there.
        self._shares: defaultdict[str, int] = defaultdict(int)
        # Queries' threads take, whoever is last gives back; reentrant, since the collector may end a claim anywhere.
        self._lock = threading.RLock()
        self._whole: WeakValueDictionary[str, _Whole] = WeakValueDictionary()
        self._held: WeakValueDictionary[tuple[str, str], Held] = WeakValueDictionary()
        self._refusals = metrics.unsent_refusals
        metrics.unsent_max_bytes.set(max_bytes)
        metrics.unsent_bytes.set_function(lambda: self._bytes)

    def claim(self, client: str = "") -> Claim:
        """A claim of nothing yet, for an answer that `client` has asked for (nobody in particular when empty)."""
        return Claim(self, client)

    def hold(self, client: str, etag: str, size: int, make: Callable[[], bytes], claim: Claim | None) -> Held:
        """The bytes to send: those already being sent to others under this tag, else the `size` that `make` gives.

        Raises `Overloaded`, before they are made, also when `client` has not read enough of what it is being sent. `claim`
        is what they were counted under so far, if they were.
        """
        held = self._held.get((client, etag))
        if held is None:
            share = _Share(self, client, size)
            held = self._held[client, etag] = Held(self._whole_of(etag, size, make, claim), share)
        return held

    def _whole_of(self, etag: str, size: int, make: Callable[[], bytes], claim: Claim | None) -> _Whole:
        whole = self._whole.get(etag)
        if whole is None:
            claim = claim or self.claim()
            claim.grow(size)
            whole = self._whole[etag] = _Whole(make(), claim)
        return whole

    def _take_share(self, client: str, size: int) -> None:
        with self._lock:
            self._check_share(client, size)
            self._shares[client] += size

    def _check_share(self, client: str, size: int) -> None:
        others = self._shares.get(client, 0)
        if others and others + size > self._max_bytes // _SHARES:
            raise self._full("you have not read your large answers yet and this one does not fit beside them")

    def _give_share_back(self, client: str, size: int) -> None:
        with self._lock:
            self._shares[client] -= size
            if self._shares[client] <= 0:
                del self._shares[client]

    def _full(self, text: str) -> Overloaded:
        self._refusals.inc()
        return Overloaded("unsent_full", f"{text}; ask again shortly", retry_after_seconds=_RETRY_AFTER_SECONDS)

    def _take(self, claim: Claim, size: int) -> None:
        with self._lock:
            self._check_share(claim.client, size)
            others = self._bytes - claim.bytes
            # One alone is let through: its bytes are bounded by themselves, as `max_result_bytes` says.
            if others and others + size > self._max_bytes:
                raise self._full("clients have not read their large answers yet and this one does not fit beside them")
            self._bytes, claim.bytes = others + size, size

    def _give_back(self, claim: Claim, size: int) -> None:
        with self._lock:
            self._bytes -= size
            claim.bytes -= size
