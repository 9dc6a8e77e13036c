"""Lanes: worker threads with a queue before them. A lane that is full keeps nobody in another waiting for a place.

Nothing here blocks the event loop, and no thread waits for it: one that is free takes the next run itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Literal, Protocol, TypeVar

from .metrics import Metrics

LaneName = Literal["named", "ad_hoc"]
_START_WITHIN_SECONDS = 5.0


class LaneRun(Protocol):
    """What a lane takes in: `execute` blocks and raises nothing. Times are of `time.perf_counter`."""

    loop: asyncio.AbstractEventLoop
    queued_at: float
    started_at: float | None

    def execute(self) -> None: ...  # noqa: D102


Run = TypeVar("Run", bound=LaneRun)


class Lane(Generic[Run]):
    """`threads` runs execute at once, the others wait; `ended` is called in the event loop when one has executed."""

    def __init__(
        self, name: LaneName, threads: int, max_admitted: int, ended: Callable[[Run], None], metrics: Metrics
    ) -> None:
        self.admitted: set[Run] = set()
        """Runs from their admission to their end, which the engine says (event loop only)."""
        self.max_admitted = max(max_admitted, threads)
        self._threads, self._ended = threads, ended
        self._wait_seconds = metrics.engine_wait
        self._pool = _started(ThreadPoolExecutor(threads, thread_name_prefix=f"query_{name}"), threads)
        # Held for microseconds: a run leaves the queue either to a thread or to its own end, and a slot is free or not.
        self._lock = threading.Lock()
        self._waiting: deque[Run] = deque()
        self._idle = threads
        metrics.engine_max_running.labels(name).set(threads)
        metrics.engine_max_connections.labels(name).set(self.max_admitted)
        # Not the slots taken: one that is free already may have a run whose end the event loop has yet to hear of.
        metrics.engine_running.labels(name).set_function(lambda: min(threads, len(self.admitted) - len(self._waiting)))
        metrics.engine_waiting.labels(name).set_function(lambda: len(self._waiting))

    def is_one_running(self) -> bool:
        """Whether at most one run executes now (any thread)."""
        return self._threads - self._idle <= 1

    def start_or_queue(self, run: Run) -> None:
        """Execute `run` as soon as a thread is free, in the order of asking."""
        with self._lock:
            if self._idle == 0:
                self._waiting.append(run)
                return
            self._idle -= 1
            run.started_at = run.queued_at
        self._wait_seconds.observe(0)
        self._pool.submit(self._work, run)

    def leave_queue(self, run: Run) -> bool:
        """Whether `run` still waited; it does no longer."""
        with self._lock:
            try:
                self._waiting.remove(run)
            except ValueError:
                return False
            return True

    def close(self) -> None:
        """Let the threads go; what still waits is not executed."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _work(self, run: Run | None) -> None:
        """Execute `run` and then whatever waits, until nothing does (worker thread)."""
        while run is not None:
            run.execute()
            with self._lock:  # before anyone hears of the end: who hears of it finds the slot free
                following = self._waiting.popleft() if self._waiting else None
                if following is None:
                    self._idle += 1
                else:
                    following.started_at = time.perf_counter()
                    self._wait_seconds.observe(following.started_at - following.queued_at)
            with contextlib.suppress(RuntimeError):  # the loop has ended, and all who waited with it
                run.loop.call_soon_threadsafe(self._ended, run)
            run = following


def _started(threads: ThreadPoolExecutor, count: int) -> ThreadPoolExecutor:
    """All its threads running: one that cannot be started later, for want of memory, would take a query with it."""
    all_here = threading.Barrier(count + 1, timeout=_START_WITHIN_SECONDS)
    for _ in range(count):
        threads.submit(all_here.wait)
    all_here.wait()
    return threads
