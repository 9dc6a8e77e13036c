"""A circuit breaker: what does not answer is left alone for a while, then asked by one caller at a time."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from prometheus_client import Gauge

logger = logging.getLogger(__name__)

_FAILURES_TO_OPEN = 3


class CircuitBreaker:
    """Closed, or open until a moment; after it one caller at a time may probe. Waits double up to a bound.

    `what` names the other side in the log; `open_seconds` are the first wait and the longest.
    """

    def __init__(
        self,
        is_open: Gauge | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        what: str = "redis",
        open_seconds: tuple[float, float] = (0.5, 15.0),
    ) -> None:
        self._gauge = is_open
        self._clock = clock
        self._what = what
        self._first_seconds, self._most_seconds = open_seconds
        self._failures = 0
        self._open_seconds = self._first_seconds
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
        """Whether the other side is considered gone."""
        return self._open_until is not None

    @property
    def wait_seconds(self) -> float:
        """Until the next probe; 0 when there is nothing to wait for."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - self._clock())

    def succeeded(self) -> None:
        """Close."""
        if self._open_until is not None:
            logger.info("%s answers again", self._what)
            if self._gauge is not None:
                self._gauge.set(0)
        self._failures, self._open_until, self._probing = 0, None, False
        self._open_seconds = self._first_seconds

    def failed(self) -> None:
        """Count; open after a few in a row, longer each time a probe fails."""
        self._failures += 1
        if self._open_until is None:
            if self._failures < _FAILURES_TO_OPEN:
                return
            logger.warning("%s does not answer; going on without it", self._what)
        elif self._probing:
            self._open_seconds = min(self._open_seconds * 2, self._most_seconds)
        else:
            return  # asked before the circuit opened: it says nothing new, and must not lengthen the wait
        self._probing = False
        self._open_until = self._clock() + self._open_seconds * random.uniform(0.8, 1.2)  # noqa: S311 - spread, not secrecy
        if self._gauge is not None:
            self._gauge.set(1)
