"""The engine: DuckDB behind an admission queue, with time-outs and cancellations that really stop the query.

At most `max_connections` queries are admitted; of these `max_running_queries` execute, each on a thread of its own, and
the others wait at most `queue_timeout_seconds`. What does not fit is refused with 503 and `Retry-After`. Nothing here
blocks the event loop, and no thread waits for it: one that is free takes the next query itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import duckdb

from .engine_call import Answer, Call, Job
from .engine_errors import OUT_OF_MEMORY, ThreadPanicked, translate, without_frames
from .entries import Packed, pack
from .errors import BiQueryError, Overloaded, ProblemError, QueryCancelled, QueryTimeout
from .formats import Encoded, Limits
from .metrics import AD_HOC, Metrics
from .plans import Plans
from .settings import Settings
from .snapshot import Snapshot
from .unsent import Unsent

_INTERRUPT_AGAIN_SECONDS = 0.01
_STOP_WITHIN_SECONDS = 5.0
_MEMORY_WAITS_SECONDS = (0.1, 0.4, 1.3)

Stop = Literal["timeout", "cancelled"]


class _Run:
    """One admitted job, from its admission to its end.

    What a thread sets (`started_at`, and in `execute`) the event loop reads once the thread has told it of the end.
    """

    def __init__(self, job: Job, call: Call, timeout_seconds: float, is_alone: Callable[[], bool]) -> None:
        self.job, self.call, self.timeout_seconds, self._is_alone = job, call, timeout_seconds, is_alone
        self.loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Answer] = self.loop.create_future()
        self.queued_at = time.perf_counter()
        self.started_at: float | None = None
        self.stopped: Stop | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.encoded: Encoded | None = None
        self.packed: Packed | None = None
        self.engine_seconds = 0.0
        self.error: Exception | None = None
        self.had_company = False
        """Whether others ran beside it when memory was refused."""

    def execute(self) -> None:
        """Blocking: run the query; afterwards either `packed` or `error` is set (worker thread)."""
        try:
            self.encoded, total_seconds = self._call_patiently()
            self.engine_seconds = total_seconds - self.encoded.encode_seconds
            self.packed = pack(self.encoded.body)
        except Exception as error:
            self.error = without_frames(error)
        except BaseException as error:  # unheard it would leave a caller waiting for ever
            self.error = ThreadPanicked(f"{type(error).__name__}: {error}")

    def _call_patiently(self) -> tuple[Encoded, float]:
        """The call. A named query that is refused memory asks again a few times: most often another query has taken it, and
        that one will not get what it wants either."""
        for wait_seconds in _MEMORY_WAITS_SECONDS if self.job.query != AD_HOC else ():
            with contextlib.suppress(*OUT_OF_MEMORY):
                return self.call()
            # Not all at the same time, or two would only take it from each other.
            self.call.wait(wait_seconds * random.uniform(0.5, 1.5))  # noqa: S311 - spread, not secrecy
        was_alone = self._is_alone()
        try:
            return self.call()
        except OUT_OF_MEMORY:
            self.had_company = not (was_alone and self._is_alone())
            raise


class Engine:
    """Runs jobs on snapshots within the admission limits."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.unsent = Unsent(settings.effective_unsent_max_bytes, metrics)
        self._max_running = settings.max_running_queries
        self._max_admitted = max(settings.max_connections, self._max_running)
        self._queue_timeout_seconds = settings.queue_timeout_seconds
        self._query_timeout_seconds = settings.query_timeout_seconds
        self._limits = Limits(settings.max_result_rows, settings.max_result_bytes)
        self._metrics = metrics
        self._threads = _started(ThreadPoolExecutor(self._max_running, thread_name_prefix="query"), self._max_running)
        self._plans = Plans()
        self._admitted: set[_Run] = set()
        # Held for microseconds: a run leaves the queue either to a thread or to its own end, and a slot is free or not.
        self._lock = threading.Lock()
        self._waiting: deque[_Run] = deque()
        self._idle = self._max_running
        self._closing = False
        self._quiet = asyncio.Event()
        metrics.engine_max_running.set(self._max_running)
        metrics.engine_max_connections.set(self._max_admitted)
        # Not the slots taken: one that is free already may have a run whose end the event loop has yet to hear of.
        metrics.engine_running.set_function(lambda: min(self._max_running, len(self._admitted) - len(self._waiting)))
        metrics.engine_waiting.set_function(lambda: len(self._waiting))

    async def run(self, snapshot: Snapshot, job: Job) -> Answer:
        """Execute `job`. Cancelling the caller stops the query.

        Raises `Overloaded`, `QueryTimeout`, `SqlRefused`, or `ProblemError` (500) for a broken named query.
        """
        if self._closing:
            raise self._refusal("shutdown", "the service is stopping; try another replica")
        if len(self._admitted) >= self._max_admitted:
            raise self._refusal("queue_full", f"{len(self._admitted)} queries are already admitted; try again shortly")
        call = Call(snapshot, job, self._limits.within(job.limits), self._plans, self.unsent.claim())
        timeout_seconds = min(job.timeout_seconds or self._query_timeout_seconds, self._query_timeout_seconds)
        run = _Run(job, call, timeout_seconds, self._is_one_running)
        snapshot.hold()
        self._admitted.add(run)
        self._start_or_queue(run)
        run.timer = run.loop.call_later(min(self._queue_timeout_seconds, timeout_seconds), self._look_at_the_clock, run)
        try:
            return await run.answer
        except asyncio.CancelledError:
            self._stop(run, "cancelled")
            raise

    def _is_one_running(self) -> bool:
        return self._max_running - self._idle <= 1

    def _start_or_queue(self, run: _Run) -> None:
        with self._lock:
            if self._idle == 0:
                self._waiting.append(run)
                return
            self._idle -= 1
            run.started_at = run.queued_at
        self._metrics.engine_wait.observe(0)
        self._threads.submit(self._work, run)

    def _work(self, run: _Run | None) -> None:
        """Execute `run` and then whatever waits, until nothing does (worker thread)."""
        while run is not None:
            run.execute()
            with self._lock:  # before anyone hears of the end: who hears of it finds the slot free
                following = self._waiting.popleft() if self._waiting else None
                if following is None:
                    self._idle += 1
                else:
                    following.started_at = time.perf_counter()
                    self._metrics.engine_wait.observe(following.started_at - following.queued_at)
            with contextlib.suppress(RuntimeError):  # the loop has ended, and all who waited with it
                run.loop.call_soon_threadsafe(self._end, run)
            run = following

    def _look_at_the_clock(self, run: _Run) -> None:
        """Refuse what waited too long, stop what ran too long, else come back when either may be so."""
        now = time.perf_counter()
        if run.started_at is None:
            left = run.queued_at + self._queue_timeout_seconds - now
            if left <= 0 and self._leave_queue(run):
                text = f"no core came free within {self._queue_timeout_seconds:g} s"
                self._end(run, self._refusal("queue_timeout", text))
                return
            left = min(left, run.timeout_seconds) if left > 0 else run.timeout_seconds
        else:
            left = run.started_at + run.timeout_seconds - now
            if left <= 0:
                self._stop(run, "timeout")
                return
        run.timer = run.loop.call_later(left, self._look_at_the_clock, run)

    def _leave_queue(self, run: _Run) -> bool:
        """Whether `run` still waited; it does no longer."""
        with self._lock:
            try:
                self._waiting.remove(run)
            except ValueError:
                return False
            return True

    def _stop(self, run: _Run, why: Stop) -> None:
        """End a run that nobody may wait for any longer: at once if it still waits, else as soon as DuckDB lets go."""
        if run not in self._admitted or run.stopped is not None:
            return
        run.stopped = why
        if self._leave_queue(run):
            self._metrics.engine_queries.labels(run.job.query, "cancelled").inc()
            self._end(run, self._stopped())
        else:
            self._interrupt(run)

    def _interrupt(self, run: _Run) -> None:
        """Again and again until the query has really ended."""
        if run in self._admitted:
            run.call.interrupt()
            self._set_timer(run, _INTERRUPT_AGAIN_SECONDS, self._interrupt)

    def _set_timer(self, run: _Run, seconds: float, then: Callable[[_Run], None]) -> None:
        if run.timer is not None:
            run.timer.cancel()
        run.timer = run.loop.call_later(seconds, then, run)

    def _end(self, run: _Run, refusal: ProblemError | None = None) -> None:
        """Count the run, give back what it held and tell its caller, if there is one still (event loop)."""
        now = time.perf_counter()
        if run.timer is not None:
            run.timer.cancel()
        self._admitted.discard(run)
        run.call.snapshot.let_go()
        queue_seconds = (run.started_at or now) - run.queued_at
        error: BiQueryError | None = refusal
        if run.started_at is None:
            self._metrics.engine_wait.observe(queue_seconds)  # those who waited in vain waited longest
        else:
            self._metrics.engine_execution.labels(run.job.query).observe(now - run.started_at)
            if run.error is not None:
                error = self._failure(run, run.error)
        if self._closing and not self._admitted:
            self._quiet.set()
        if error is not None:
            if error is not run.error:
                error.__cause__ = run.error
            run.encoded = run.packed = None
            run.call.claim.settle(0)
            if not run.answer.done():
                run.answer.set_exception(error)
            return
        assert run.encoded is not None  # noqa: S101 - narrows the type; `execute` sets it or `error`
        assert run.packed is not None  # noqa: S101
        self._count(run.job, run.encoded)
        if not run.answer.done():
            run.answer.set_result(Answer(run.encoded, run.packed, queue_seconds, run.engine_seconds, run.call.claim))

    def _count(self, job: Job, encoded: Encoded) -> None:
        self._metrics.engine_queries.labels(job.query, "ok").inc()
        self._metrics.engine_rows.labels(job.query).inc(encoded.row_count)
        self._metrics.engine_result_bytes.labels(job.fmt).inc(len(encoded.body))
        if encoded.truncated:
            self._metrics.engine_truncated.labels(job.query).inc()

    def _refusal(self, reason: str, text: str) -> Overloaded:
        self._metrics.engine_rejections.labels(reason).inc()
        return Overloaded(reason, text, retry_after_seconds=1 if reason == "shutdown" else 2)

    def _stopped(self) -> ProblemError:
        """Why a query was stopped early: nobody waits for it any more, or the service cannot."""
        if self._closing:
            return self._refusal("shutdown", "the service is stopping and the query took too long; ask again")
        return QueryCancelled("client_closed_request", "the client went away and its query was stopped")

    def _failure(self, run: _Run, error: Exception) -> BiQueryError:
        job, stopped = run.job, run.stopped
        if isinstance(error, (duckdb.FatalException, duckdb.InternalException)):
            run.call.snapshot.is_broken = True  # DuckDB refuses every later query on this instance
        if isinstance(error, duckdb.InterruptException) and stopped is None:
            stopped = "timeout"  # the engine's own backstop, max_execution_time
        outcome = stopped or ("refused" if isinstance(error, Overloaded) else "error")
        self._metrics.engine_queries.labels(job.query, outcome).inc()
        if stopped == "cancelled":
            return self._stopped()
        if stopped == "timeout":
            text = f"the query ran longer than {run.timeout_seconds:g} s and was stopped; narrow it or aggregate more"
            return QueryTimeout("query_timeout", text)
        if isinstance(error, OUT_OF_MEMORY) and run.had_company and job.query != AD_HOC:
            return self._refusal("out_of_memory", "other queries have taken the memory; ask again shortly")
        return error if isinstance(error, BiQueryError) else translate(error, job.query, job.sql, run.call.prefix_bytes)

    async def close(self, grace_seconds: float) -> None:
        """Admit nothing more, give running queries `grace_seconds`, then stop them and let the threads go."""
        self._closing = True
        await self._ended_within(grace_seconds)
        for run in list(self._admitted):
            self._stop(run, "cancelled")
        await self._ended_within(_STOP_WITHIN_SECONDS)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ended_within(self, seconds: float) -> None:
        if self._admitted:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), seconds)


def _started(threads: ThreadPoolExecutor, count: int) -> ThreadPoolExecutor:
    """All its threads running: one that cannot be started later, for want of memory, would take a query with it."""
    all_here = threading.Barrier(count + 1, timeout=_STOP_WITHIN_SECONDS)
    for _ in range(count):
        threads.submit(all_here.wait)
    all_here.wait()
    return threads
