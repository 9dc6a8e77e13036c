"""One query in a worker thread: what is asked, what comes back, and the handle that stops it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

from .database import Database
from .engine_errors import ThreadPanicked, with_class
from .entries import Packed
from .formats import PROBE_PREFIX, Encoded, Format, Limits, encode
from .metrics import AD_HOC
from .plans import Plans
from .snapshot import Snapshot
from .unsent import Claim


@dataclass(frozen=True)
class Job:
    """One SELECT to run: `query` is its metric label, `timeout_seconds` None means the service's own.

    `views` are run before it, in a connection that nothing else uses afterwards. `limits` None means the service's own;
    they only ever make those narrower. `client` is who asked first.
    """

    query: str
    sql: str
    params: Mapping[str, object]
    fmt: Format
    timeout_seconds: float | None = None
    views: tuple[str, ...] = ()
    limits: Limits | None = None
    client: str = ""

    @property
    def is_ad_hoc(self) -> bool:
        """Whether a client wrote the SQL."""
        return self.query == AD_HOC


@dataclass(frozen=True)
class Answer:
    """An encoded result, as sent and as stored, and where its time went, in seconds (encoding: in `encoded`)."""

    encoded: Encoded
    packed: Packed
    queue_seconds: float
    engine_seconds: float
    claim: Claim | None = None


class Call:
    """One execution in a worker thread, and the handle that stops it from the event loop."""

    def __init__(self, snapshot: Snapshot, job: Job, limits: Limits, plans: Plans, claim: Claim) -> None:
        self.snapshot, self._job, self._limits, self._plans = snapshot, job, limits, plans
        self.claim = claim
        self._cursor: duckdb.DuckDBPyConnection | None = None
        self._stopped = threading.Event()
        # Held for microseconds: an interrupt is sent either to a cursor that is ours, or not at all. Without it, one could
        # reach the cursor's next user.
        self._lock = threading.Lock()
        self.prefix_bytes = len(PROBE_PREFIX)
        self.database: Database | None = None
        """Where it runs, or ran; None before it starts."""

    def __call__(self) -> tuple[Encoded, float]:
        """Run it: the encoded result, and the seconds it took (blocking)."""
        with self.snapshot.instance(private=self._job.is_ad_hoc) as database:
            self.database = database
            return self._run_in(database)

    def _run_in(self, database: Database) -> tuple[Encoded, float]:
        cursor = database.new_cursor() if self._job.views else database.take_cursor()
        with self._lock:
            self._cursor = cursor
        usable = False
        try:
            if self._stopped.is_set():
                raise duckdb.InterruptException("stopped before it started")
            job = self._job
            started = time.perf_counter()
            for view in job.views:
                cursor.execute(view)
            plan = self._plans.get(self.snapshot.id, cursor, job.sql, job.params, job.fmt)
            self.prefix_bytes = plan.prefix_bytes
            encoded = encode(cursor, plan, job.params, job.fmt, self._limits, self.claim.grow)
            self.claim.settle(len(encoded.body))
            usable = True
            return encoded, time.perf_counter() - started
        except Exception as error:
            raised = with_class(error)
            if isinstance(raised, (duckdb.FatalException, duckdb.InternalException)):
                database.is_broken = True
            raise raised from None
        except BaseException as error:
            raise ThreadPanicked(f"{type(error).__name__}: {error}") from error
        finally:
            with self._lock:
                self._cursor = None
                usable = usable and not self._stopped.is_set() and not self._job.views
            if usable:
                database.give_back(cursor)
            else:
                with contextlib.suppress(duckdb.Error):
                    cursor.close()

    def has_spilled_too_much(self) -> bool:
        """Whether its instance, which it has for itself, has more on disk than it may."""
        database = self.database
        return database is not None and database.spilled_bytes() > database.spill_max_bytes

    def wait(self, seconds: float) -> None:
        """Let time pass (blocking). Raises what a stopped query raises, as soon as it is stopped."""
        if self._stopped.wait(seconds):
            raise duckdb.InterruptException("stopped while it waited")

    def interrupt(self) -> None:
        """Stop the query. An interrupt sent before execution starts is lost (duckdb-rs#860): call until it has ended."""
        with self._lock:
            self._stopped.set()
            if self._cursor is not None:
                self._cursor.interrupt()
