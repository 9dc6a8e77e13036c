"""Building a snapshot's file: sources loaded, models run in the order they need each other, manifest, verification."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from .budget import Budget
from .catalogue import Model
from .engine_errors import OUT_OF_MEMORY
from .errors import PublishError, ShortOfMemory
from .front_matter import error_line
from .lines import cause
from .parquet_files import check_parquet, engine_path, find_damaged
from .settings import Settings
from .snapshot_files import MANIFEST_TABLE, Manifest, sync_folder
from .sources import Source

_MAX_WORKERS = 4
_INTERRUPT_AGAIN_SECONDS = 0.05
_LOOK_AT_BUDGET_SECONDS = 0.2
# A commit that finds no memory for its values says "TransactionContext Error: Failed to commit: could not allocate block".
_SHORT_OF_MEMORY = (*OUT_OF_MEMORY, duckdb.TransactionException)
Cursor = duckdb.DuckDBPyConnection


@dataclass(frozen=True)
class Plan:
    """What becomes snapshot `snapshot_id`: the sources, then the models, each with the models it reads."""

    snapshot_id: str
    sources: Sequence[Source]
    models: Sequence[tuple[Model, frozenset[str]]]
    is_demo: bool = False


@dataclass(frozen=True)
class _Step:
    name: str
    origin: Path
    needs: frozenset[str]
    run: Callable[[Cursor], None]


@dataclass(frozen=True)
class Observers:
    """Who looks on: `unchanged` raises if a source was rewritten meanwhile; `done` hears of each finished relation."""

    unchanged: Callable[[], None]
    done: Callable[[str], object]
    budget: Budget


def build(settings: Settings, path: Path, plan: Plan, observers: Observers) -> Manifest:
    """Write the snapshot beside `path` and rename it there when it is complete, checked and durable.

    Raises `PublishError`, `OSError` or `duckdb.Error`; then nothing is left behind.
    """
    building = path.with_name(f".{plan.snapshot_id}.building")
    files = (building, building.with_name(building.name + ".wal"))
    spill = path.with_name(f".{plan.snapshot_id}.spill")
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{settings.effective_engine_memory_bytes}B",
        "temp_directory": str(spill),
        "max_temp_directory_size": f"{settings.spill_max_bytes}B",
        "threads": settings.engine_threads,
        # Models read tables and models only: whatever they use is in the fingerprint.
        "autoload_known_extensions": False,
        "autoinstall_known_extensions": False,
    }
    try:
        with duckdb.connect(str(building), config=config) as connection:
            connection.execute("SET GLOBAL TimeZone = 'UTC'")
            work = _Work(connection, min(_MAX_WORKERS, settings.engine_threads), files, observers)
            memory_bytes = settings.effective_engine_memory_bytes
            work.run([_loading(source, memory_bytes) for source in plan.sources])
            connection.execute("SET GLOBAL enable_external_access = false")
            connection.execute("SET GLOBAL lock_configuration = true")
            work.run([_modelling(model, needs) for model, needs in plan.models])
            observers.unchanged()
            _write_manifest(connection, plan)
            connection.execute("CHECKPOINT")
        observers.budget.check(files, ())
        manifest = verify(building)
        building.chmod(0o444)
        with building.open("rb") as file:
            os.fsync(file.fileno())
        building.replace(path)
        sync_folder(path.parent)
        return manifest
    finally:
        for leftover in files:
            leftover.unlink(missing_ok=True)
        shutil.rmtree(spill, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed publish left. Only while holding the folder's lock."""
    for path in [*folder.glob(".*.building*"), *folder.glob(".*.spill"), *folder.glob(".*.tmp")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class _Work:
    """Steps run on one database, several at once where they do not need each other: a row group keeps one core busy."""

    def __init__(self, connection: Cursor, workers: int, files: Sequence[Path], observers: Observers) -> None:
        self._connection = connection
        self._workers = workers
        self._files = files
        self._observers = observers
        self._active: set[Cursor] = set()
        self._lock = threading.Lock()

    def run(self, steps: Sequence[_Step]) -> None:
        """Run all of them; what one raises stops the others.

        When one is short of memory those beside it end, and the rest run one by one, it first: none pays for a huge
        neighbour, or is blamed for it.
        """
        if left := self._run(steps, max(1, min(self._workers, len(steps)))):
            self._write_down()
            self._run(left, 1)

    def _write_down(self) -> None:
        """Have what finished steps wrote leave the memory."""
        with contextlib.suppress(*_SHORT_OF_MEMORY), self._connection.cursor() as cursor:
            cursor.execute("CHECKPOINT")

    def _run(self, steps: Sequence[_Step], workers: int) -> Sequence[_Step]:
        """The steps that remain because of one that was short of memory beside others, that one first."""
        waiting, running, short = list(steps), dict[Future[None], _Step](), list[_Step]()
        finished = {need for step in steps for need in step.needs} - {step.name for step in steps}
        with ThreadPoolExecutor(workers, thread_name_prefix="publish") as pool:
            try:
                while running or (waiting and not short):
                    # No more than run at once: what waited in the pool would go on side by side after a shortage.
                    ready = [step for step in waiting if step.needs <= finished and not short]
                    for step in ready[: workers - len(running)]:
                        waiting.remove(step)
                        running[pool.submit(self._step, step)] = step
                    ended = wait(running, timeout=_LOOK_AT_BUDGET_SECONDS, return_when=FIRST_COMPLETED).done
                    self._observers.budget.check(self._files, [step.origin for step in running.values()])
                    for future in ended:
                        step = running.pop(future)
                        if workers > 1 and isinstance(future.exception(), ShortOfMemory):
                            short.append(step)
                            continue
                        future.result()
                        finished.add(step.name)
                        self._observers.done(step.name)
                return [*short, *waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                while any(future.running() for future in running):  # an interrupt sent too early is lost: repeat
                    with self._lock:
                        for cursor in self._active:
                            cursor.interrupt()
                    wait(running, timeout=_INTERRUPT_AGAIN_SECONDS)
                raise

    def _step(self, step: _Step) -> None:
        with self._connection.cursor() as cursor:
            with self._lock:
                self._active.add(cursor)
            try:
                step.run(cursor)
            finally:
                with self._lock:
                    self._active.discard(cursor)


def _loading(source: Source, memory_bytes: int) -> _Step:
    return _Step(source.table, source.root, frozenset(), lambda cursor: _load(cursor, source, memory_bytes))


def _modelling(model: Model, needs: frozenset[str]) -> _Step:
    return _Step(model.name, model.path, needs, lambda cursor: _materialise(cursor, model))


def _load(cursor: Cursor, source: Source, memory_bytes: int) -> None:
    for path in source.paths:
        check_parquet(cursor, path)
    options = "union_by_name = true" + (", hive_partitioning = true" if source.is_folder else "")
    files = [engine_path(path) for path in source.paths]
    try:
        cursor.execute(
            f"CREATE TABLE {quoted(source.table)} AS SELECT * FROM read_parquet($files, {options})", {"files": files}
        )
    except duckdb.InterruptException:
        raise
    except _SHORT_OF_MEMORY as error:
        raise ShortOfMemory(f"{source.root}: {cause(error)}") from error
    except duckdb.Error as error:
        named = [path for path in source.paths if str(path) in str(error)]
        culprit = named[0] if named else find_damaged(source.paths, memory_bytes) or source.root
        raise PublishError(f"{culprit}: {cause(error)}") from error


def _materialise(cursor: Cursor, model: Model) -> None:
    kind = "VIEW" if model.materialized == "view" else "TABLE"
    prefix = f"CREATE {kind} {quoted(model.name)} AS\n"
    try:
        cursor.execute(prefix + model.sql)
    except duckdb.InterruptException:
        raise
    except (duckdb.Error, MemoryError) as error:
        raised = ShortOfMemory if isinstance(error, _SHORT_OF_MEMORY) else PublishError
        line = model.sql_line + max(0, error_line(str(error)) - 1)
        hint = (
            "; a model reads tables and models only, put the file into the data folder"
            if _is_file_access(error)
            else ""
        )
        raise raised(f"{model.path}:{line}: model '{model.name}' failed: {cause(error)}{hint}") from error


def _is_file_access(error: Exception) -> bool:
    return isinstance(error, duckdb.PermissionException)


def _write_manifest(connection: Cursor, plan: Plan) -> None:
    kinds = {source.table: ("table", "") for source in plan.sources}
    kinds |= {model.name: (model.materialized, model.description) for model, _ in plan.models}
    relations = {}
    for name, (kind, description) in sorted(kinds.items()):
        columns = connection.execute(f"DESCRIBE {quoted(name)}").fetchall()
        relations[name] = {
            "kind": kind,
            "rows": _count(connection, name),
            "columns": [{"name": column[0], "type": column[1]} for column in columns],
            "description": description,
        }
    manifest = Manifest(
        plan.snapshot_id, time.time(), relations, sum(source.bytes for source in plan.sources), plan.is_demo
    )
    schema = MANIFEST_TABLE.split(".")[0]
    connection.execute(f"CREATE SCHEMA {schema}")
    connection.execute(f"CREATE TABLE {MANIFEST_TABLE} (document VARCHAR)")
    connection.execute(f"INSERT INTO {MANIFEST_TABLE} VALUES (?)", [manifest.to_json().decode()])


def verify(path: Path) -> Manifest:
    """Open a finished file as a reader would and compare it with its manifest. Raises `PublishError`."""
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            connection.execute("SET enable_external_access = false")
            document = connection.execute(f"SELECT document FROM {MANIFEST_TABLE}").fetchall()[0][0]
            manifest = Manifest.from_json(document)
            for name, relation in manifest.relations.items():
                if relation["kind"] == "view":  # counting it would run it: it only has to bind
                    connection.execute(f"SELECT 1 FROM {quoted(name)} LIMIT 0")
                elif (rows := _count(connection, name)) != relation["rows"]:
                    raise PublishError(
                        f"{path}: table '{name}' holds {rows} rows, its manifest says {relation['rows']}"
                    )
    except (duckdb.Error, IndexError, KeyError, ValueError, TypeError) as error:
        raise PublishError(f"{path} is damaged: {cause(error)}") from error
    return manifest


def _count(connection: Cursor, name: str) -> Any:
    return connection.execute(f"SELECT count(*) FROM {quoted(name)}").fetchall()[0][0]


def quoted(name: str) -> str:
    """`name` as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
