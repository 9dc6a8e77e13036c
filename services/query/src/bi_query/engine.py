"""The engine: DuckDB behind an admission queue, with time-outs and cancellations that really stop the query.

At most `max_connections` queries are admitted; of these `max_running_queries` execute, each on a thread of its own, and
the others wait at most `queue_timeout_seconds`. What does not fit is refused with 503 and `Retry-After`. Nothing here
blocks the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import duckdb

from .engine_errors import ThreadPanicked, translate
from .errors import BiQueryError, Overloaded, ProblemError, QueryCancelled, QueryTimeout
from .formats import PROBE_PREFIX, Encoded, Format, Limits, Plan, encode, make_plan
from .metrics import Metrics
from .settings import Settings
from .snapshot import Snapshot
from .unsent import Claim, Unsent

_INTERRUPT_AGAIN_SECONDS = 0.01
_STOP_WITHIN_SECONDS = 5.0
_MAX_PLANS = 4096
_REMEMBERED_SQL_CHARS = 4096

Stop = Literal["timeout", "cancelled"]


@dataclass(frozen=True)
class Job:
    """One SELECT to run: `query` is its metric label, `timeout_seconds` None means the service's own.

    `views` are run before it, in a connection that nothing else uses afterwards. `limits` None means the service's own;
    they only ever make those narrower.
    """

    query: str
    sql: str
    params: Mapping[str, object]
    fmt: Format
    timeout_seconds: float | None = None
    views: tuple[str, ...] = ()
    limits: Limits | None = None


@dataclass(frozen=True)
class Answer:
    """An encoded result, where its time went in seconds (encoding: `encoded.encode_seconds`), what it is counted under."""

    encoded: Encoded
    queue_seconds: float
    engine_seconds: float
    claim: Claim | None = None


class _Call:
    """One execution in a worker thread, and the handle that stops it from the event loop."""

    def __init__(self, snapshot: Snapshot, job: Job, limits: Limits, plans: _Plans, claim: Claim) -> None:
        self._snapshot, self._job, self._limits, self._plans = snapshot, job, limits, plans
        self.claim = claim
        self._cursor: duckdb.DuckDBPyConnection | None = None
        self._stopped = False
        # Held for microseconds: an interrupt is sent either to a cursor that is ours, or not at all. Without it, one could
        # reach the cursor's next user.
        self._lock = threading.Lock()
        self.prefix_bytes = len(PROBE_PREFIX)

    def __call__(self) -> tuple[Encoded, float]:
        cursor = self._snapshot.new_cursor() if self._job.views else self._snapshot.take_cursor()
        with self._lock:
            self._cursor = cursor
        usable = False
        try:
            if self._stopped:
                raise duckdb.InterruptException("stopped before it started")
            job = self._job
            started = time.perf_counter()
            for view in job.views:
                cursor.execute(view)
            plan = self._plans.get(self._snapshot, cursor, job)
            self.prefix_bytes = plan.prefix_bytes
            encoded = encode(cursor, plan, job.params, job.fmt, self._limits, self.claim.grow)
            self.claim.settle(len(encoded.body))
            usable = True
            return encoded, time.perf_counter() - started
        except Exception:
            raise
        except BaseException as error:
            raise ThreadPanicked(f"{type(error).__name__}: {error}") from error
        finally:
            with self._lock:
                self._cursor = None
                usable = usable and not self._stopped and not self._job.views
            if usable:
                self._snapshot.give_back(cursor)
            else:
                with contextlib.suppress(duckdb.Error):
                    cursor.close()

    def interrupt(self) -> None:
        """Stop the query. An interrupt sent before execution starts is lost (duckdb-rs#860): call until it has ended."""
        with self._lock:
            self._stopped = True
            if self._cursor is not None:
                self._cursor.interrupt()


class _Plans:
    """Remembered plans: the casts a SELECT needs are worked out once per snapshot, format and parameter types."""

    def __init__(self) -> None:
        self._plans: OrderedDict[tuple[object, ...], Plan] = OrderedDict()

    def get(self, snapshot: Snapshot, cursor: duckdb.DuckDBPyConnection, job: Job) -> Plan:
        types = tuple((name, type(value).__name__) for name, value in sorted(job.params.items()))
        key = (snapshot.id, job.sql, job.fmt, types)
        plan = self._plans.get(key)
        if plan is None:
            plan = make_plan(cursor, job.sql, job.params, job.fmt)
            if (
                len(job.sql) > _REMEMBERED_SQL_CHARS
            ):  # thousands of texts as long as a body may be would fill the memory
                return plan
            self._plans[key] = plan
            while len(self._plans) > _MAX_PLANS:
                self._plans.popitem(last=False)
        return plan


class Engine:
    """Runs jobs on snapshots within the admission limits."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.unsent = Unsent(settings.effective_unsent_max_bytes, metrics)
        self._max_admitted = max(settings.max_connections, settings.max_running_queries)
        self._queue_timeout_seconds = settings.queue_timeout_seconds
        self._query_timeout_seconds = settings.query_timeout_seconds
        self._limits = Limits(settings.max_result_rows, settings.max_result_bytes)
        self._metrics = metrics
        self._slots = asyncio.Semaphore(settings.max_running_queries)
        self._threads = ThreadPoolExecutor(settings.max_running_queries, thread_name_prefix="query")
        self._plans = _Plans()
        self._admitted = 0
        self._closing = False
        self._owners: dict[asyncio.Task[Answer], asyncio.Event] = {}
        metrics.engine_max_running.set(settings.max_running_queries)
        metrics.engine_max_connections.set(self._max_admitted)

    async def run(self, snapshot: Snapshot, job: Job) -> Answer:
        """Execute `job`. Cancelling the caller stops the query.

        Raises `Overloaded`, `QueryTimeout`, `SqlRefused`, or `ProblemError` (500) for a broken named query.
        """
        if self._closing:
            raise self._refusal("shutdown", "the service is stopping; try another replica")
        if self._admitted >= self._max_admitted:
            raise self._refusal("queue_full", f"{self._admitted} queries are already admitted; try again shortly")
        self._admitted += 1
        stop = asyncio.Event()
        owner = asyncio.create_task(self._own(snapshot, job, stop))
        self._owners[owner] = stop
        owner.add_done_callback(lambda task: self._owners.pop(task, None))
        try:
            return await asyncio.shield(owner)
        except asyncio.CancelledError:
            stop.set()
            # The owner ends by itself once the thread is free; nobody is left to read its error.
            owner.add_done_callback(lambda task: task.cancelled() or task.exception())
            raise

    async def _own(self, snapshot: Snapshot, job: Job, stop: asyncio.Event) -> Answer:
        """Hold the slot, the lease and the thread until the query has really ended, whoever still waits for it."""
        try:
            with snapshot.lease():
                queued_at = time.perf_counter()
                try:
                    await self._wait_for_slot(stop)
                except QueryCancelled:
                    self._metrics.engine_queries.labels(job.query, "cancelled").inc()
                    raise
                finally:  # those who waited in vain waited longest
                    queue_seconds = time.perf_counter() - queued_at
                    self._metrics.engine_wait.observe(queue_seconds)
                try:
                    return await self._execute(snapshot, job, stop, queue_seconds)
                finally:
                    self._slots.release()
        finally:
            self._admitted -= 1

    async def _wait_for_slot(self, stop: asyncio.Event) -> None:
        if not self._slots.locked():
            await self._slots.acquire()
            return
        self._metrics.engine_waiting.inc()
        acquiring = asyncio.ensure_future(self._slots.acquire())
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait(
                {acquiring, stopping}, timeout=self._queue_timeout_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if not acquiring.done():
                if stop.is_set():
                    raise self._stopped()
                raise self._refusal("queue_timeout", f"no core came free within {self._queue_timeout_seconds:g} s")
            if stop.is_set():
                self._slots.release()
                raise self._stopped()
        finally:
            self._metrics.engine_waiting.dec()
            stopping.cancel()
            if not acquiring.done():
                acquiring.cancel()

    async def _execute(self, snapshot: Snapshot, job: Job, stop: asyncio.Event, queue_seconds: float) -> Answer:
        call = _Call(snapshot, job, self._limits.within(job.limits), self._plans, self.unsent.claim())
        timeout_seconds = min(job.timeout_seconds or self._query_timeout_seconds, self._query_timeout_seconds)
        started = time.perf_counter()
        self._metrics.engine_running.inc()
        thread = asyncio.get_running_loop().run_in_executor(self._threads, call)
        stopping = asyncio.ensure_future(stop.wait())
        stopped: Stop | None = None
        try:
            waited: set[asyncio.Future[Any]] = {thread, stopping}
            await asyncio.wait(waited, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not thread.done():
                stopped = "cancelled" if stop.is_set() else "timeout"
                while not thread.done():
                    call.interrupt()
                    await asyncio.wait({thread}, timeout=_INTERRUPT_AGAIN_SECONDS)
            encoded, total_seconds = thread.result()
        except Exception as error:
            if isinstance(error, (duckdb.FatalException, duckdb.InternalException)):
                snapshot.is_broken = True  # DuckDB refuses every later query on this instance
            call.claim.settle(0)
            raise self._failure(error, job, stopped, timeout_seconds, call.prefix_bytes) from error
        finally:
            stopping.cancel()
            self._metrics.engine_running.dec()
            self._metrics.engine_execution.labels(job.query).observe(time.perf_counter() - started)
        self._count(job, encoded)
        return Answer(encoded, queue_seconds, total_seconds - encoded.encode_seconds, call.claim)

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

    def _failure(
        self, error: Exception, job: Job, stopped: Stop | None, timeout_seconds: float, prefix_bytes: int
    ) -> BiQueryError:
        interrupted = isinstance(error, duckdb.InterruptException)
        if interrupted and stopped is None:
            stopped = "timeout"  # the engine's own backstop, max_execution_time
        outcome = stopped or ("refused" if isinstance(error, Overloaded) else "error")
        self._metrics.engine_queries.labels(job.query, outcome).inc()
        if stopped == "cancelled":
            return self._stopped()
        if stopped == "timeout":
            text = f"the query ran longer than {timeout_seconds:g} s and was stopped; narrow it or aggregate more"
            return QueryTimeout("query_timeout", text)
        return error if isinstance(error, BiQueryError) else translate(error, job.query, job.sql, prefix_bytes)

    async def close(self, grace_seconds: float) -> None:
        """Admit nothing more, give running queries `grace_seconds`, then stop them and let the threads go."""
        self._closing = True
        if self._owners:
            await asyncio.wait(set(self._owners), timeout=grace_seconds)
        for stop in list(self._owners.values()):
            stop.set()
        if self._owners:
            await asyncio.wait(set(self._owners), timeout=_STOP_WITHIN_SECONDS)
        self._threads.shutdown(wait=False, cancel_futures=True)
