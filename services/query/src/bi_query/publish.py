"""Publishing: Parquet files -> models -> one immutable DuckDB file -> the pointer moves.

The snapshot's id is a fingerprint of what goes in: file contents, models, engine version. Nothing is visible to
readers until the file is complete, checked and durable; any failure leaves the old snapshot in place.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import duckdb
import orjson
from tqdm import tqdm

from .catalogue import Catalogue, Model, sql_error_line
from .errors import PublishError
from .settings import Settings
from .snapshot import (
    MANIFEST_TABLE,
    POINTER,
    STATUS,
    Manifest,
    SnapshotUnusable,
    read_pointer,
    replace_file,
    snapshot_path,
    sync_folder,
)
from .sources import Source, check_parquet, discover, fingerprint_files, unchanged_since

_FORMAT = "1"


@dataclass(frozen=True)
class Published:
    """The outcome of a publish. `changed` is False when the inputs were already published."""

    snapshot_id: str
    changed: bool
    relations: Mapping[str, Mapping[str, object]]
    file_bytes: int
    seconds: float


def publish(settings: Settings, data_dir: Path, catalogue: Catalogue, *, progress: bool = True) -> Published:
    """Publish `data_dir` with the catalogue's models into `settings.snapshot_dir`. Raises `PublishError`."""
    started = time.time()
    folder = settings.snapshot_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder):
            result = _publish(settings, data_dir, catalogue, started, progress)
            _write_status(folder, started, None)
            return result
    except (PublishError, OSError, duckdb.Error) as error:
        text = str(error) if isinstance(error, PublishError) else f"{_cause(error)} (in {folder})"
        with contextlib.suppress(OSError):
            _write_status(folder, started, text)
        raise PublishError(text) from error


def _publish(settings: Settings, data_dir: Path, catalogue: Catalogue, started: float, progress: bool) -> Published:
    folder = settings.snapshot_dir
    sources = discover(data_dir)
    models = order_models(catalogue.models, {source.table for source in sources})
    with _bar("reading", sum(source.bytes for source in sources), "B", progress) as bar:
        digests = fingerprint_files(sources, folder / "fingerprints.json", bar.update)
    snapshot_id = _fingerprint(sources, digests, models)
    path = snapshot_path(folder, snapshot_id)
    changed = not (_points_at(folder, snapshot_id) and path.exists())
    if not path.exists():
        _build(settings, path, snapshot_id, sources, models, progress)
    manifest = _verify(path)
    if changed:
        pointer = {"snapshot_id": snapshot_id, "published_at": time.time()}
        replace_file(folder / POINTER, orjson.dumps(pointer))
        _prune(folder, snapshot_id, settings.snapshots_kept)
    return Published(snapshot_id, changed, manifest.relations, path.stat().st_size, time.time() - started)


def order_models(models: Mapping[str, Model], tables: set[str]) -> list[Model]:
    """Models so that each comes after those it reads. Raises `PublishError` on an unknown table, clash or cycle."""
    with duckdb.connect() as parser:
        reads = {}
        for name, model in models.items():
            if name in tables:
                raise PublishError(f"{model.path}: model '{name}' has the name of a data table; rename the model")
            try:
                reads[name] = {table.split(".")[-1].strip('"') for table in parser.get_table_names(model.sql)}
            except duckdb.Error as error:
                line = model.sql_line + sql_error_line(str(error))
                raise PublishError(f"{model.path}:{line}: {_cause(error)}") from error
            if unknown := reads[name] - tables - set(models):
                raise PublishError(
                    f"{model.path}: model '{name}' reads {', '.join(sorted(unknown))}, which is neither a table of the data "
                    f"folder ({', '.join(sorted(tables)) or 'empty'}) nor a model"
                )
    ordered: list[Model] = []
    while reads:
        ready = sorted(name for name, needs in reads.items() if not needs & set(reads))
        if not ready:
            raise PublishError(f"models read each other in a circle: {', '.join(sorted(reads))}")
        for name in ready:
            ordered.append(models[name])
            del reads[name]
    return ordered


def _fingerprint(sources: Sequence[Source], digests: Mapping[str, str], models: Sequence[Model]) -> str:
    parts = [_FORMAT, duckdb.__version__]
    for source in sources:
        parts += [source.table, *(f"{source.relative(path)}={digests[str(path)]}" for path in source.paths)]
    parts += [f"{model.name}|{model.materialized}|{model.description}|{model.sql}" for model in models]
    return blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


def _build(
    settings: Settings, path: Path, snapshot_id: str, sources: Sequence[Source], models: Sequence[Model], progress: bool
) -> None:
    building = path.with_name(f".{snapshot_id}.building")
    spill = path.with_name(f".{snapshot_id}.spill")
    for leftover in path.parent.glob(".*.building*"):
        leftover.unlink()
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{settings.effective_engine_memory_bytes}B",
        "temp_directory": str(spill),
    }
    seen = unchanged_since(sources)
    try:
        with duckdb.connect(str(building), config=config) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET enable_progress_bar = false")
            with _bar("publishing", len(sources) + len(models), "table", progress) as bar:
                for source in sources:
                    bar.set_postfix_str(source.table)
                    _load(connection, source)
                    bar.update()
                for model in models:
                    bar.set_postfix_str(model.name)
                    _materialise(connection, model)
                    bar.update()
            seen()
            _write_manifest(connection, snapshot_id, sources, models)
            connection.execute("CHECKPOINT")
        _verify(building)
        building.chmod(0o444)
        with building.open("rb") as file:
            os.fsync(file.fileno())
        building.replace(path)
        sync_folder(path.parent)
    finally:
        for leftover in (building, building.with_name(building.name + ".wal")):
            leftover.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            spill.rmdir()


def _load(connection: duckdb.DuckDBPyConnection, source: Source) -> None:
    for path in source.paths:
        check_parquet(connection, path)
    options = "union_by_name = true" + (", hive_partitioning = true" if source.is_folder else "")
    files = [str(path) for path in source.paths]
    try:
        connection.execute(
            f"CREATE TABLE {quoted(source.table)} AS SELECT * FROM read_parquet($files, {options})", {"files": files}
        )
    except duckdb.Error as error:
        name = next((path for path in source.paths if str(path) in str(error)), source.root)
        raise PublishError(f"{name}: {_cause(error)}") from error


def _materialise(connection: duckdb.DuckDBPyConnection, model: Model) -> None:
    kind = "VIEW" if model.materialized == "view" else "TABLE"
    prefix = f"CREATE {kind} {quoted(model.name)} AS\n"
    try:
        connection.execute(prefix + model.sql)
    except duckdb.Error as error:
        line = model.sql_line + max(0, sql_error_line(str(error)) - 1)
        raise PublishError(f"{model.path}:{line}: model '{model.name}' failed: {_cause(error)}") from error


def _write_manifest(
    connection: duckdb.DuckDBPyConnection, snapshot_id: str, sources: Sequence[Source], models: Sequence[Model]
) -> None:
    kinds = {source.table: ("table", "") for source in sources}
    kinds |= {model.name: (model.materialized, model.description) for model in models}
    relations = {}
    for name, (kind, description) in sorted(kinds.items()):
        columns = connection.execute(f"DESCRIBE {quoted(name)}").fetchall()
        rows = connection.execute(f"SELECT count(*) FROM {quoted(name)}").fetchall()[0][0]
        relations[name] = {
            "kind": kind,
            "rows": rows,
            "columns": [{"name": column[0], "type": column[1]} for column in columns],
            "description": description,
        }
    manifest = Manifest(snapshot_id, time.time(), relations, sum(source.bytes for source in sources))
    schema = MANIFEST_TABLE.split(".")[0]
    connection.execute(f"CREATE SCHEMA {schema}")
    connection.execute(f"CREATE TABLE {MANIFEST_TABLE} (document VARCHAR)")
    connection.execute(f"INSERT INTO {MANIFEST_TABLE} VALUES (?)", [manifest.to_json().decode()])


def _verify(path: Path) -> Manifest:
    """Open the finished file as a reader would and compare it with its manifest."""
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            manifest = Manifest.from_json(connection.execute(f"SELECT document FROM {MANIFEST_TABLE}").fetchall()[0][0])
            for name, relation in manifest.relations.items():
                rows = connection.execute(f"SELECT count(*) FROM {quoted(name)}").fetchall()[0][0]
                if rows != relation["rows"]:
                    raise PublishError(
                        f"{path}: table '{name}' holds {rows} rows, its manifest says {relation['rows']}"
                    )
    except (duckdb.Error, IndexError, ValueError, TypeError) as error:
        raise PublishError(f"{path} is damaged: {_cause(error)}; delete it and publish again") from error
    return manifest


def _points_at(folder: Path, snapshot_id: str) -> bool:
    try:
        pointer = read_pointer(folder)
    except SnapshotUnusable:
        return False
    return pointer is not None and pointer.snapshot_id == snapshot_id


def _prune(folder: Path, current_id: str, kept: int) -> None:
    snapshots = sorted(folder.glob("*.duckdb"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in [path for path in snapshots if path.stem != current_id][kept - 1 :]:
        path.unlink(missing_ok=True)


def _write_status(folder: Path, started: float, error: str | None) -> None:
    path = folder / STATUS
    succeeded_at = time.time()
    if error is not None:
        try:
            succeeded_at = orjson.loads(path.read_bytes())["succeeded_at"]
        except (OSError, ValueError, KeyError):
            succeeded_at = 0.0
    status = {"ok": error is None, "attempted_at": started, "succeeded_at": succeeded_at}
    replace_file(path, orjson.dumps({**status, "seconds": time.time() - started, "error": error}))


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    with (folder / ".publish.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PublishError(f"another publish is running on {folder}; wait for it to end") from error
        yield


def _bar(what: str, total: int, unit: str, enabled: bool) -> tqdm[Any]:
    return tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", disable=not enabled, mininterval=0.5)


def quoted(name: str) -> str:
    """`name` as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _cause(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
