"""Snapshots: one immutable DuckDB file each, found through a pointer, opened read only, swapped live.

A snapshot folder holds `<id>.duckdb` files, the pointer `current.json` (replaced atomically) and `publish.json`, the
outcome of the last publish. A snapshot's manifest lives inside its file, so a copied file is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import orjson

from .errors import BiQueryError, Overloaded
from .metrics import Metrics
from .settings import Settings

logger = logging.getLogger(__name__)

POINTER = "current.json"
STATUS = "publish.json"
MANIFEST_TABLE = "_bi.manifest"


class SnapshotUnusable(BiQueryError):
    """A pointer or snapshot file that cannot be opened; the text says which and why."""


@dataclass(frozen=True)
class Manifest:
    """What a snapshot holds. `relations` maps a name to `{"kind", "rows", "columns": [{"name", "type"}], "description"}`."""

    snapshot_id: str
    created_at: float
    relations: Mapping[str, Mapping[str, Any]]
    source_bytes: int

    def to_json(self) -> bytes:
        """The manifest as stored in the file."""
        return orjson.dumps(self.__dict__)

    @classmethod
    def from_json(cls, data: bytes | str) -> Manifest:
        """Inverse of `to_json`."""
        return cls(**orjson.loads(data))


@dataclass(frozen=True)
class Pointer:
    """Which snapshot is current, and since when (seconds since the epoch)."""

    snapshot_id: str
    published_at: float


def snapshot_path(folder: Path, snapshot_id: str) -> Path:
    """Where the snapshot with this id lies."""
    return folder / f"{snapshot_id}.duckdb"


def read_pointer(folder: Path) -> Pointer | None:
    """The current pointer, or None when nothing was ever published. Raises `SnapshotUnusable` on a damaged one."""
    path = folder / POINTER
    try:
        document = orjson.loads(path.read_bytes())
        pointer = Pointer(str(document["snapshot_id"]), float(document["published_at"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotUnusable(f"{path} is not a usable pointer: {error}") from error
    if not pointer.snapshot_id.isalnum():
        raise SnapshotUnusable(f"{path} names a snapshot that is no plain name")
    return pointer


def replace_file(path: Path, data: bytes) -> None:
    """Replace `path` atomically and durably: readers see the old bytes or the new ones, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Snapshot:
    """An open, read-only snapshot. Reference counted on the event loop: it closes when retired and idle."""

    def __init__(self, path: Path, pointer: Pointer, settings: Settings) -> None:
        """Open and lock the file. Raises `SnapshotUnusable`."""
        self.id = pointer.snapshot_id
        self.published_at = pointer.published_at
        self.loaded_at = time.time()
        self._spill_folder = settings.effective_spill_dir / f"{self.id}-{os.getpid()}"
        try:
            self.file_bytes = path.stat().st_size
            self._connection = _connect(path, self._spill_folder, settings)
            try:
                row = self._connection.execute(f"SELECT document FROM {MANIFEST_TABLE}").fetchall()[0]
                self.manifest = Manifest.from_json(row[0])
            except BaseException:
                self._connection.close()
                raise
        except (duckdb.Error, OSError, IndexError, TypeError, ValueError) as error:
            raise SnapshotUnusable(f"snapshot {path} cannot be opened: {error}") from error
        self.relations = frozenset(self.manifest.relations)
        self._idle_cursors: list[duckdb.DuckDBPyConnection] = []
        self._leases = 0
        self._retired = False

    @contextlib.contextmanager
    def lease(self) -> Iterator[Snapshot]:
        """Hold the snapshot open while a request uses it (event loop only)."""
        self._leases += 1
        try:
            yield self
        finally:
            self._leases -= 1
            self._close_if_done()

    def take_cursor(self) -> duckdb.DuckDBPyConnection:
        """A cursor for one query at a time (any thread)."""
        try:
            return self._idle_cursors.pop()
        except IndexError:
            return self._connection.cursor()

    def give_back(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Return a cursor whose query ended by itself. An interrupted one must be closed instead."""
        self._idle_cursors.append(cursor)

    def retire(self) -> None:
        """Close as soon as the last lease ends (event loop only)."""
        self._retired = True
        self._close_if_done()

    @property
    def is_open(self) -> bool:
        """False once retired and idle."""
        return not (self._retired and self._leases == 0)

    def _close_if_done(self) -> None:
        if self.is_open:
            return
        for cursor in self._idle_cursors:
            cursor.close()
        self._idle_cursors.clear()
        self._connection.close()
        shutil.rmtree(self._spill_folder, ignore_errors=True)


def _connect(path: Path, spill_folder: Path, settings: Settings) -> duckdb.DuckDBPyConnection:
    config: dict[str, Any] = {
        "threads": settings.max_running_queries,
        "memory_limit": f"{settings.effective_engine_memory_bytes}B",
        "temp_directory": str(spill_folder),
        "max_temp_directory_size": f"{settings.spill_max_bytes}B",
        "autoload_known_extensions": "false",
        "autoinstall_known_extensions": "false",
        "allow_community_extensions": "false",
    }
    connection = duckdb.connect(str(path), read_only=True, config=config)
    try:
        connection.execute("SET GLOBAL TimeZone = 'UTC'")
        # Backstop behind the engine's own time-out, should an interrupt ever be lost.
        connection.execute(f"SET GLOBAL max_execution_time = {int(settings.query_timeout_seconds * 1000) + 2000}")
        connection.execute("SET GLOBAL errors_as_json = true")
        # Not in the configuration above: there it would forbid the temp_directory beside it.
        connection.execute("SET GLOBAL enable_external_access = false")
        connection.execute("SET GLOBAL lock_configuration = true")
    except BaseException:
        connection.close()
        raise
    return connection


class SnapshotStore:
    """The current snapshot of a folder, kept current by polling the pointer."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._folder = settings.snapshot_dir
        self._metrics = metrics
        self._current: Snapshot | None = None
        self._failed: Pointer | None = None
        # One thread of its own: opening a large file must not wait behind queries.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshot")

    @property
    def current(self) -> Snapshot:
        """The snapshot new requests use. Raises `Overloaded` (503) while there is none."""
        if self._current is None:
            raise Overloaded(
                "no_snapshot", "no data has been published yet; run `bi-query publish`", retry_after_seconds=5
            )
        return self._current

    @property
    def is_ready(self) -> bool:
        """Whether a snapshot is being served."""
        return self._current is not None

    async def refresh(self) -> None:
        """Look at the pointer and swap to the snapshot it names. A bad one is counted, logged and left alone."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._read_status)
            pointer = await loop.run_in_executor(self._thread, read_pointer, self._folder)
            if pointer is None or pointer == self._failed or self._is_current(pointer):
                return
            path = snapshot_path(self._folder, pointer.snapshot_id)
            self._failed = pointer
            fresh = await loop.run_in_executor(self._thread, Snapshot, path, pointer, self._settings)
        except SnapshotUnusable as error:
            self._metrics.snapshot_load_failures.inc()
            logger.error("snapshot not loaded; the old one keeps serving", extra={"fields": {"error": str(error)}})
            return
        self._failed = None
        self._swap(fresh)

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
            old.retire()
        logger.info("snapshot loaded", extra={"fields": {"snapshot": fresh.id, "bytes": fresh.file_bytes}})

    def _read_status(self) -> None:
        try:
            status = orjson.loads((self._folder / STATUS).read_bytes())
            self._metrics.publish_last_success.set(1 if status["ok"] else 0)
            self._metrics.publish_last_attempt.set(status["attempted_at"])
            self._metrics.publish_last_success_at.set(status["succeeded_at"])
            self._metrics.publish_duration.set(status["seconds"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("publish status unreadable", extra={"fields": {"error": str(error)}})
