"""Publishing: Parquet files -> models -> one immutable DuckDB file -> the pointer moves.

The snapshot's id is a fingerprint of what goes in: file contents, models, engine version. Nothing is visible to
readers until the file is complete, checked and durable; any failure leaves the old snapshot in place.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import duckdb
import orjson
from tqdm import tqdm

from .build import Plan, build, cause, remove_leftovers, verify
from .catalogue import Catalogue, Model
from .dependencies import order_models
from .errors import PublishError
from .settings import Settings
from .snapshot_files import POINTER, STATUS, Manifest, SnapshotUnusable, read_pointer, replace_file, snapshot_path
from .sources import Source, discover, fingerprint_files, unchanged_since

_FORMAT = "1"
_SNAPSHOT_NAME = re.compile(r"[0-9a-f]{16}\.duckdb")


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
            try:
                result = _publish(settings, data_dir, catalogue, started, progress)
            except (PublishError, OSError, duckdb.Error) as error:
                with contextlib.suppress(OSError):  # the disk may be full
                    _write_status(folder, started, _explanation(error, folder))
                raise
            _write_status(folder, started, None)
            return result
    except (PublishError, OSError, duckdb.Error) as error:
        raise PublishError(_explanation(error, folder)) from error


def _explanation(error: Exception, folder: Path) -> str:
    if isinstance(error, PublishError):
        return str(error)
    return f"{cause(error)} (while writing to {folder}; the snapshot before, if any, is untouched)"


def _publish(settings: Settings, data_dir: Path, catalogue: Catalogue, started: float, progress: bool) -> Published:
    folder = settings.snapshot_dir
    remove_leftovers(folder)
    sources = discover(data_dir)
    models = order_models(catalogue.models, {source.table for source in sources})
    unchanged = unchanged_since(sources)  # from before the fingerprint: what is read after it must be what it names
    with _bar("reading", sum(source.bytes for source in sources), "B", progress) as bar:
        digests = fingerprint_files(sources, folder / "fingerprints.json", bar.update)
    snapshot_id = _fingerprint(sources, digests, [model for model, _ in models])
    path = snapshot_path(folder, snapshot_id)
    manifest = _existing(path)
    changed = manifest is None or not _points_at(folder, snapshot_id)
    if manifest is None:
        with _bar("publishing", len(sources) + len(models), "table", progress) as bar:

            def done(name: str) -> None:
                bar.set_postfix_str(name, refresh=False)
                bar.update()

            manifest = build(settings, path, Plan(snapshot_id, sources, models), unchanged, done)
    if changed:
        pointer = {"snapshot_id": snapshot_id, "published_at": time.time()}
        replace_file(folder / POINTER, orjson.dumps(pointer))
    _prune(folder, snapshot_id, settings.snapshots_kept)
    return Published(snapshot_id, changed, manifest.relations, path.stat().st_size, time.time() - started)


def _existing(path: Path) -> Manifest | None:
    """The manifest of a snapshot made before, or None when there is none that can be used: then it is made anew."""
    if not path.exists():
        return None
    try:
        return verify(path)
    except PublishError:
        return None


def _fingerprint(sources: Sequence[Source], digests: Mapping[str, str], models: Sequence[Model]) -> str:
    parts = [_FORMAT, duckdb.__version__]
    for source in sources:
        parts += [source.table, *(f"{source.relative(path)}={digests[str(path)]}" for path in source.paths)]
    parts += [f"{model.name}|{model.materialized}|{model.description}|{model.sql}" for model in models]
    return blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _points_at(folder: Path, snapshot_id: str) -> bool:
    try:
        pointer = read_pointer(folder)
    except SnapshotUnusable:
        return False
    return pointer is not None and pointer.snapshot_id == snapshot_id


def _prune(folder: Path, current_id: str, kept: int) -> None:
    """Keep the current snapshot and the youngest others, `kept` in all. Files of other names are not ours."""
    ours = [path for path in folder.glob("*.duckdb") if _SNAPSHOT_NAME.fullmatch(path.name)]
    others = [path for path in ours if path.stem != current_id]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[kept - 1 :]:
        path.unlink(missing_ok=True)


def _write_status(folder: Path, started: float, error: str | None) -> None:
    path = folder / STATUS
    succeeded_at = time.time()
    if error is not None:
        try:
            succeeded_at = float(orjson.loads(path.read_bytes())["succeeded_at"])
        except (OSError, ValueError, KeyError, TypeError):
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
    # disable=None: nothing when standard error is no terminal; a log of redrawn lines helps nobody.
    disable = None if enabled else True
    return tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", disable=disable, mininterval=0.5)
