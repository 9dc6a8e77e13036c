"""The engine: DuckDB behind an admission queue, with time-outs and cancellations that really stop the query.

Named queries and ad-hoc SQL go through lanes of their own (threads, queue, memory): what a stranger writes cannot keep
the governed queries out. In each at most `max_connections` queries are admitted; of these some execute, each on a thread
of its own, and the others wait at most `queue_timeout_seconds`. What does not fit is refused with 503 and `Retry-After`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from typing import Literal

import duckdb

from .engine_call import Answer, Call, Job
from .engine_errors import OUT_OF_MEMORY, ThreadPanicked, translate, without_frames
from .entries import Packed, pack
from .errors import BiQueryError, Overloaded, ProblemError, QueryCancelled, QueryTimeout, SqlRefused
from .formats import Encoded, Limits
from .lanes import Lane
from .metrics import Metrics
from .plans import Plans
from .settings import Settings
from .snapshot import Snapshot
from .unsent import Unsent

_INTERRUPT_AGAIN_SECONDS = 0.01
_STOP_WITHIN_SECONDS = 5.0
_SPILL_LOOK_SECONDS = 0.5
_MEMORY_WAITS_SECONDS = (0.1, 0.4, 1.3)

Stop = Literal["timeout", "cancelled", "shutdown", "spilled"]
_OUTCOMES = {"timeout": "timeout", "cancelled": "cancelled", "shutdown": "cancelled", "spilled": "error"}


class _Run:
    """One admitted job, from its admission to its end.

    What a thread sets (`started_at`, and in `execute`) the event loop reads once the thread has told it of the end.
    """

    def __init__(self, job: Job, call: Call, timeout_seconds: float, lane: Lane[_Run]) -> None:
        self.job, self.call, self.timeout_seconds, self.lane = job, call, timeout_seconds, lane
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
        for wait_seconds in () if self.job.is_ad_hoc else _MEMORY_WAITS_SECONDS:
            with contextlib.suppress(*OUT_OF_MEMORY):
                return self.call()
            # Not all at the same time, or two would only take it from each other.
            self.call.wait(wait_seconds * random.uniform(0.5, 1.5))  # noqa: S311 - spread, not secrecy
        was_alone = self.lane.is_one_running()
        try:
            return self.call()
        except OUT_OF_MEMORY:
            self.had_company = not (was_alone and self.lane.is_one_running())
            raise


class Engine:
    """Runs jobs on snapshots within the admission limits."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.unsent = Unsent(settings.effective_unsent_max_bytes, metrics)
        self._queue_timeout_seconds = settings.queue_timeout_seconds
        self._query_timeout_seconds = settings.query_timeout_seconds
        self._limits = Limits(settings.max_result_rows, settings.max_result_bytes)
        self._metrics = metrics
        self._plans = Plans()
        most = settings.max_connections
        self._named: Lane[_Run] = Lane("named", settings.max_running_queries, most, self._end, metrics)
        threads = settings.effective_ad_hoc_max_running_queries
        self._ad_hoc: Lane[_Run] = Lane("ad_hoc", threads, most, self._end, metrics)
        self._closing = False
        self._quiet = asyncio.Event()

    async def run(self, snapshot: Snapshot, job: Job) -> Answer:
        """Execute `job`. Cancelling the caller stops the query.

        Raises `Overloaded`, `QueryTimeout`, `SqlRefused`, or `ProblemError` (500) for a broken named query.
        """
        if self._closing:
            raise self._refusal("shutdown", "the service is stopping; try another replica")
        lane = self._ad_hoc if job.is_ad_hoc else self._named
        if len(lane.admitted) >= lane.max_admitted:
            raise self._refusal("queue_full", f"{len(lane.admitted)} queries are already admitted; try again shortly")
        call = Call(snapshot, job, self._limits.within(job.limits), self._plans, self.unsent.claim(job.client))
        timeout_seconds = min(job.timeout_seconds or self._query_timeout_seconds, self._query_timeout_seconds)
        run = _Run(job, call, timeout_seconds, lane)
        snapshot.hold()
        lane.admitted.add(run)
        lane.start_or_queue(run)
        self._look_within(run, min(self._queue_timeout_seconds, timeout_seconds))
        try:
            return await run.answer
        except asyncio.CancelledError:
            self._stop(run, "cancelled")
            raise

    def _look_at_the_clock(self, run: _Run) -> None:
        """Refuse what waited too long, stop what ran too long, else come back when either may be so."""
        now = time.perf_counter()
        if run.started_at is None:
            left = run.queued_at + self._queue_timeout_seconds - now
            if left <= 0 and run.lane.leave_queue(run):
                text = f"its turn did not come within {self._queue_timeout_seconds:g} s"
                self._end(run, self._refusal("queue_timeout", text))
                return
            left = min(left, run.timeout_seconds) if left > 0 else run.timeout_seconds
        else:
            left = run.started_at + run.timeout_seconds - now
            if left <= 0:
                self._stop(run, "timeout")
                return
            if run.job.is_ad_hoc and run.call.has_spilled_too_much():
                self._stop(run, "spilled")
                return
        self._look_within(run, left)

    def _look_within(self, run: _Run, seconds: float) -> None:
        seconds = min(seconds, _SPILL_LOOK_SECONDS) if run.job.is_ad_hoc else seconds
        run.timer = run.loop.call_later(seconds, self._look_at_the_clock, run)

    def _stop(self, run: _Run, why: Stop) -> None:
        """End a run that nobody may wait for any longer: at once if it still waits, else as soon as DuckDB lets go."""
        if run not in run.lane.admitted or run.stopped is not None:
            return
        run.stopped = why
        if run.lane.leave_queue(run):
            self._metrics.engine_queries.labels(run.job.query, "cancelled").inc()
            self._end(run, self._stopped(why))
        else:
            self._interrupt(run)

    def _interrupt(self, run: _Run) -> None:
        """Again and again until the query has really ended."""
        if run in run.lane.admitted:
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
        run.lane.admitted.discard(run)
        run.call.snapshot.let_go()
        queue_seconds = (run.started_at or now) - run.queued_at
        error: BiQueryError | None = refusal
        if run.started_at is None:
            self._metrics.engine_wait.observe(queue_seconds)  # those who waited in vain waited longest
        else:
            self._metrics.engine_execution.labels(run.job.query).observe(now - run.started_at)
            if run.error is not None:
                error = self._failure(run, run.error)
        if self._closing and not self._runs():
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

    def _stopped(self, why: Stop) -> ProblemError:
        """Why a query was stopped early: nobody waits for it any more, or the service cannot."""
        if why == "shutdown":
            return self._refusal("shutdown", "the service is stopping and the query took too long; ask again")
        return QueryCancelled("client_closed_request", "the client went away and its query was stopped")

    def _failure(self, run: _Run, error: Exception) -> BiQueryError:
        job, stopped = run.job, run.stopped
        if isinstance(error, duckdb.InterruptException) and stopped is None:
            stopped = "timeout"  # the engine's own backstop, max_execution_time
        outcome = _OUTCOMES[stopped] if stopped else "refused" if isinstance(error, Overloaded) else "error"
        self._metrics.engine_queries.labels(job.query, outcome).inc()
        if stopped in ("cancelled", "shutdown"):
            return self._stopped(stopped)
        if stopped == "timeout":
            text = f"the query ran longer than {run.timeout_seconds:g} s and was stopped; narrow it or aggregate more"
            return QueryTimeout("query_timeout", text)
        if stopped == "spilled":
            return SqlRefused("query_too_large", "the query needs more memory and more space on disk than it may have")
        if isinstance(error, OUT_OF_MEMORY) and run.had_company and not job.is_ad_hoc:
            return self._refusal("out_of_memory", "other queries have taken the memory; ask again shortly")
        return error if isinstance(error, BiQueryError) else translate(error, job.query, job.sql, run.call.prefix_bytes)

    async def close(self, grace_seconds: float) -> None:
        """Admit nothing more, give running queries `grace_seconds`, then stop them and let the threads go."""
        self._closing = True
        await self._ended_within(grace_seconds)
        for run in self._runs():
            self._stop(run, "shutdown")
        await self._ended_within(_STOP_WITHIN_SECONDS)
        for lane in (self._named, self._ad_hoc):
            lane.close()

    def _runs(self) -> list[_Run]:
        return [*self._named.admitted, *self._ad_hoc.admitted]

    async def _ended_within(self, seconds: float) -> None:
        if self._runs():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), seconds)
