"""Quiet moments between stages: nobody begins anything new, what runs ends, and people's clock stands still.

So the service's counters can be read for one stage alone, and nobody hurries afterwards to make up for the pause.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import gevent

_LOOK_EVERY_SECONDS = 0.01


class Pauses:
    """Whether there is a pause, and who is still at work. One thread (gevent's)."""

    def __init__(self) -> None:
        self.on = False
        self._busy = 0
        self._lost = 0.0
        self._since = 0.0

    def now(self) -> float:
        """Seconds of a clock that stands still in pauses."""
        return (self._since if self.on else time.monotonic()) - self._lost

    @contextmanager
    def action(self) -> Iterator[None]:
        """Around what a pause has to wait for."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    def begin(self) -> None:
        """From now on nobody begins anything."""
        if not self.on:
            self.on, self._since = True, time.monotonic()

    def idle(self, within: float) -> bool:
        """Wait until nobody is at work; False when somebody still is after `within` seconds."""
        deadline = time.monotonic() + within
        while self._busy and time.monotonic() < deadline:
            gevent.sleep(_LOOK_EVERY_SECONDS)
        return not self._busy

    def end(self) -> None:
        """Go on."""
        if self.on:
            self.on = False
            self._lost += time.monotonic() - self._since
