"""Snapshots: one immutable DuckDB file each, found through a pointer, opened read only, swapped live."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb

from .database import Database, open_private, open_shared
from .errors import Overloaded
from .metrics import Metrics
from .publish_status import PublishStatus, last_beat, read_status
from .settings import Settings
from .snapshot_files import (
    MANIFEST_TABLE,
    Manifest,
    Pointer,
    SnapshotUnusable,
    read_pointer,
    remove_dead_spill,
    snapshot_path,
    spill_folder,
)
from .sources import stamp

logger = logging.getLogger(__name__)

_LINGER_SECONDS = 5.0
_FIRST_RETRY_SECONDS = 2.0
_LONGEST_RETRY_SECONDS = 60.0


class Snapshot:
    """An open, read-only snapshot. Reference counted on the event loop: it closes when retired and idle."""

    def __init__(self, path: Path, pointer: Pointer, settings: Settings) -> None:
        """Open and lock the file. Raises `SnapshotUnusable`."""
        self.id = pointer.snapshot_id
        """Also what a name qualified by its database begins with."""
        self.published_at = pointer.published_at
        self.loaded_at = time.time()
        self._path, self._settings = path, settings
        self._spill_folder = spill_folder(settings.effective_spill_dir, self.id)
        try:
            self.file_bytes = path.stat().st_size
            self._spill_folder.mkdir(parents=True, exist_ok=True)  # DuckDB makes only the last folder of a path
            self._shared = open_shared(path, self._spill_folder / "named", settings)
            self._private: list[Database] = []
            try:
                row = self._shared.new_cursor().execute(f"SELECT document FROM {MANIFEST_TABLE}").fetchall()[0]
                self.manifest = Manifest.from_json(row[0])
                if self.manifest.snapshot_id != self.id:
                    raise ValueError(f"it holds snapshot {self.manifest.snapshot_id}")
                # Now, for the file may be gone when the first of them is needed.
                for number in range(settings.effective_ad_hoc_max_running_queries):
                    self._private.append(self._new_private(number))
            except BaseException:
                self._close_all()
                raise
        except (duckdb.Error, OSError, IndexError, TypeError, ValueError) as error:
            raise SnapshotUnusable(f"snapshot {path} cannot be opened: {error}") from error
        self.relations = frozenset(self.manifest.relations)
        self._replaced = itertools.count(settings.effective_ad_hoc_max_running_queries)
        self._leases = 0
        self._retired = self._closed = False

    @contextlib.contextmanager
    def lease(self) -> Iterator[Snapshot]:
        """Hold the snapshot open while a request uses it (event loop only). Raises `Overloaded` when it has closed."""
        self.hold()
        try:
            yield self
        finally:
            self.let_go()

    def hold(self) -> None:
        """A lease to be ended by `let_go` (event loop only). Raises `Overloaded` when the snapshot has closed."""
        if not self.is_open:
            raise Overloaded(
                "snapshot_gone", "new data was published while this waited; ask again", retry_after_seconds=1
            )
        self._leases += 1

    def let_go(self) -> None:
        """End a lease (event loop only)."""
        self._leases -= 1
        self._close_if_done()

    @contextlib.contextmanager
    def instance(self, *, private: bool) -> Iterator[Database]:
        """The instance all share, or one that nobody else uses meanwhile (any thread)."""
        if not private:
            yield self._shared
            return
        database = self._borrowed()
        try:
            yield database
        finally:
            if database.is_intact():
                self._private.append(database)
            else:
                database.close()

    def _borrowed(self) -> Database:
        try:
            return self._private.pop()
        except IndexError:  # one broke
            pass
        try:
            return self._new_private(next(self._replaced))
        except duckdb.Error as error:
            text = "a query broke the engine, and it could not be reopened yet; ask again"
            raise Overloaded("engine_reopening", text, retry_after_seconds=2) from error

    def _new_private(self, number: int) -> Database:
        return open_private(self._path, self.id, self._spill_folder / f"ad-hoc-{number}", self._settings)

    def _close_all(self) -> None:
        for database in (*self._private, self._shared):
            database.close()

    @property
    def is_broken(self) -> bool:
        """Whether DuckDB gave up the instance that all share."""
        return self._shared.is_broken

    def retire(self) -> None:
        """Close as soon as the last lease ends (event loop only)."""
        self._retired = True
        self._close_if_done()

    def keep(self) -> None:
        """Undo `retire` while it is still open."""
        self._retired = False

    @property
    def is_open(self) -> bool:
        """False once retired and idle."""
        return not (self._retired and self._leases == 0)

    @property
    def is_closed(self) -> bool:
        """Whether the file has been let go."""
        return self._closed

    def _close_if_done(self) -> None:
        if self.is_open or self._closed:
            return
        self._closed = True
        self._close_all()
        shutil.rmtree(self._spill_folder, ignore_errors=True)


class SnapshotStore:
    """The current snapshot of a folder, kept current by polling the pointer."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._folder = settings.snapshot_dir
        self._metrics = metrics
        self._current: Snapshot | None = None
        self._leaving: dict[str, tuple[Snapshot, asyncio.TimerHandle]] = {}
        self._broken: Snapshot | None = None
        self._failed: object = None
        self.publish_status: PublishStatus | None = None
        """How the last publish went; None when none ever ran here."""
        self._retry_at = self._retry_seconds = 0.0
        self.failure = ""
        """Why the last attempt to load failed; empty when it did not."""
        # One thread of its own: opening a large file must not wait behind queries.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._thread.submit(remove_dead_spill, settings.effective_spill_dir)

    @property
    def current(self) -> Snapshot:
        """The snapshot new requests use. Raises `Overloaded` (503) while there is none."""
        if self._current is not None and self._current.is_broken:
            raise Overloaded(
                "engine_reopening", "a query broke the engine; it is being reopened", retry_after_seconds=2
            )
        if self._current is None:
            raise Overloaded(
                "no_snapshot", "no data has been published yet; run `bi-query publish`", retry_after_seconds=5
            )
        return self._current

    @property
    def is_ready(self) -> bool:
        """Whether a snapshot is being served."""
        return self._current is not None and not self._current.is_broken

    async def refresh(self) -> None:
        """Look at the pointer and swap to the snapshot it names. A bad one is counted, logged, left alone and retried."""
        if not self._let_go_of_broken():
            return
        loop = asyncio.get_running_loop()
        seen: object = "pointer"
        try:
            await loop.run_in_executor(self._thread, self._read_status)
            pointer = await loop.run_in_executor(self._thread, read_pointer, self._folder)
            if pointer is None or self._is_current(pointer):
                self._failed, self.failure = None, ""
                return
            path = snapshot_path(self._folder, pointer.snapshot_id)
            seen = (pointer, await loop.run_in_executor(self._thread, stamp, path))
            if self._must_wait(seen):
                return
            fresh = self._revived(pointer)
            if fresh is None:
                fresh = await loop.run_in_executor(self._thread, Snapshot, path, pointer, self._settings)
        except SnapshotUnusable as error:
            if not self._must_wait(seen):
                self._note_failure(seen, error)
            return
        self._failed, self.failure = None, ""
        self._swap(fresh)

    def _let_go_of_broken(self) -> bool:
        """Close an instance DuckDB gave up; False while its last queries still fail, since a process shares instances."""
        if self._current is not None and self._current.is_broken:
            self._broken, self._current = self._current, None
            self._broken.retire()
            self._metrics.snapshot_load_failures.inc()
            logger.error(
                "the engine gave the snapshot up; reopening it", extra={"fields": {"snapshot": self._broken.id}}
            )
        return self._broken is None or self._broken.is_closed

    def _must_wait(self, seen: object) -> bool:
        """Whether exactly this failed a moment ago. A file that was copied late, or again, is tried at once."""
        return seen == self._failed and time.monotonic() < self._retry_at

    def _note_failure(self, seen: object, error: SnapshotUnusable) -> None:
        again = self._retry_seconds * 2 if seen == self._failed else _FIRST_RETRY_SECONDS
        self._failed, self.failure = seen, str(error)
        self._retry_seconds = min(again, _LONGEST_RETRY_SECONDS)
        self._retry_at = time.monotonic() + self._retry_seconds
        self._metrics.snapshot_load_failures.inc()
        logger.error("snapshot not loaded; the old one keeps serving", extra={"fields": {"error": str(error)}})

    def _revived(self, pointer: Pointer) -> Snapshot | None:
        """The snapshot of a quick way back, if it is still open."""
        snapshot, timer = self._leaving.pop(pointer.snapshot_id, (None, None))
        if snapshot is None or timer is None or not snapshot.is_open:
            return None
        timer.cancel()
        snapshot.keep()
        snapshot.published_at = pointer.published_at
        return snapshot

    async def watch(self) -> None:
        """Poll for ever."""
        while True:
            await asyncio.sleep(self._settings.snapshot_poll_seconds)
            try:
                await self.refresh()
            except Exception:  # the watcher must outlive any surprise, or new data would silently stop arriving
                self._metrics.snapshot_load_failures.inc()
                logger.exception("looking for a new snapshot failed")

    def close(self) -> None:
        """Release the snapshot (it closes with its last query) and the thread."""
        for snapshot, timer in self._leaving.values():
            timer.cancel()
            snapshot.retire()
        if self._current is not None:
            self._current.retire()
            self._current = None
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _is_current(self, pointer: Pointer) -> bool:
        return self._current is not None and self._current.id == pointer.snapshot_id

    def _swap(self, fresh: Snapshot) -> None:
        old, self._current = self._current, fresh
        metrics = self._metrics
        metrics.snapshot_info.clear()
        metrics.snapshot_info.labels(fresh.id).set(1)
        metrics.snapshot_published.set(fresh.published_at)
        metrics.snapshot_loaded.set(fresh.loaded_at)
        metrics.snapshot_bytes.set(fresh.file_bytes)
        if old is not None:
            metrics.snapshot_swaps.inc()
            # A request may have chosen the old one and not leased it yet: its SQL is still being checked.
            timer = asyncio.get_running_loop().call_later(_LINGER_SECONDS, old.retire)
            self._leaving = {name: left for name, left in self._leaving.items() if left[0].is_open}
            self._leaving[old.id] = (old, timer)
        logger.info("snapshot loaded", extra={"fields": {"snapshot": fresh.id, "bytes": fresh.file_bytes}})

    def _read_status(self) -> None:
        metrics = self._metrics
        metrics.publisher_heartbeat.set(last_beat(self._folder))
        try:
            status = self.publish_status = read_status(self._folder)
        except (OSError, ValueError) as error:
            logger.warning("publish status unreadable", extra={"fields": {"error": str(error)}})
            return
        if status is not None:
            metrics.publish_last_success.set(1 if status.ok else 0)
            metrics.publish_last_attempt.set(status.attempted_at)
            metrics.publish_last_success_at.set(status.succeeded_at)
            metrics.publish_duration.set(status.seconds)
            metrics.publish_failures.set(status.failures)
