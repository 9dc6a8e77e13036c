"""Publishing: Parquet files -> models -> one immutable DuckDB file -> the pointer moves.

The snapshot's id is a fingerprint of what goes in: file contents, models, engine version. Nothing is visible to
readers until the file is complete, checked and durable; any failure leaves the old snapshot in place.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import duckdb
from tqdm import tqdm

from .budget import Budget
from .build import Observers, Plan, build, remove_leftovers, verify
from .catalogue import Catalogue, Model
from .dependencies import order_models
from .errors import PublishBusy, PublishError
from .lines import cause
from .publish_status import write_status
from .rollback import kept_snapshots
from .settings import Settings
from .snapshot_files import Manifest, Pointer, SnapshotUnusable, exclusive, read_pointer, snapshot_path, write_pointer
from .sources import Source, discover, fingerprint_files, unchanged_since

_FORMAT = "2"
_NOTE_WAIT_SECONDS = 1.0
_FAILURES = (PublishError, OSError, MemoryError, duckdb.Error)


@dataclass(frozen=True)
class Published:
    """The outcome of a publish. `changed` is False when the inputs were already published, or were rolled back from."""

    snapshot_id: str
    changed: bool
    relations: Mapping[str, Mapping[str, object]]
    file_bytes: int
    seconds: float
    is_rollback_kept: bool = False


@dataclass(frozen=True)
class How:
    """How to publish. `keep_rollback` leaves the snapshot that somebody went back to while the inputs are the same."""

    progress: bool = True
    is_demo: bool = False
    keep_rollback: bool = False
    lock_wait_seconds: float = 0


def publish(settings: Settings, data_dir: Path, catalogue: Catalogue, how: How = How()) -> Published:
    """Publish `data_dir` with the catalogue's models into `settings.snapshot_dir`. Raises `PublishError`."""
    folder = settings.snapshot_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder, how.lock_wait_seconds):
            started = time.time()
            try:
                result = _publish(settings, data_dir, catalogue, how)
            except _FAILURES as error:
                with contextlib.suppress(OSError):
                    write_status(folder, started, _explanation(error, folder))
                raise
            write_status(folder, started, None)
            return result
    except PublishBusy:
        raise
    except _FAILURES as error:
        raise PublishError(_explanation(error, folder)) from error


def note_failure(folder: Path, failure: str, started: float) -> None:
    """Note a publish that failed before or outside of `publish`. Raises `OSError`, `PublishBusy`."""
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder, _NOTE_WAIT_SECONDS):
        write_status(folder, started, failure)


def _explanation(error: Exception, folder: Path) -> str:
    if isinstance(error, PublishError):
        return str(error)
    return f"{cause(error)} (while writing to {folder}; the snapshot before, if any, is untouched)"


def _publish(settings: Settings, data_dir: Path, catalogue: Catalogue, how: How) -> Published:
    started = time.monotonic()
    folder, budget = settings.snapshot_dir, Budget(settings)
    remove_leftovers(folder)
    sources = discover(data_dir)
    models = order_models(catalogue.models, {source.table for source in sources})
    unchanged = unchanged_since(sources)  # from before the fingerprint: what is read after it must be what it names
    with _bar("reading", sum(source.bytes for source in sources), "B", how.progress) as bar:

        def read(count: int) -> None:
            bar.update(count)
            budget.check_time()

        digests = fingerprint_files(sources, folder / "fingerprints.json", read)
    plan = Plan(_fingerprint(sources, digests, [model for model, _ in models], how), sources, models, how.is_demo)
    before = _pointer(folder)
    is_kept = how.keep_rollback and before is not None and before.rolled_back_from == plan.snapshot_id
    snapshot_id = before.snapshot_id if before is not None and is_kept else plan.snapshot_id
    path = snapshot_path(folder, snapshot_id)
    manifest = _existing(path)
    if manifest is None and is_kept:
        raise PublishError(
            f"{path}, which was gone back to, is missing or damaged; choose another: bi-query rollback ID"
        )
    changed = manifest is None or before is None or before.snapshot_id != snapshot_id
    if manifest is None:
        with _bar("publishing", len(sources) + len(models), "table", how.progress) as bar:

            def done(name: str) -> None:
                bar.set_postfix_str(name, refresh=False)
                bar.update()

            manifest = build(settings, path, plan, Observers(unchanged, done, budget))
    if not is_kept:
        _point(folder, before, manifest, changed)
    _prune(folder, settings.snapshots_kept)
    seconds = time.monotonic() - started
    return Published(snapshot_id, changed, manifest.relations, path.stat().st_size, seconds, is_kept)


def _existing(path: Path) -> Manifest | None:
    """The manifest of a snapshot made before, or None when there is none that can be used: then it is made anew."""
    if not path.exists():
        return None
    try:
        return verify(path)
    except PublishError:
        return None


def _fingerprint(sources: Sequence[Source], digests: Mapping[str, str], models: Sequence[Model], how: How) -> str:
    parts = [_FORMAT, duckdb.__version__, "demo" if how.is_demo else "own"]
    for source in sources:
        parts += [source.table, *(f"{source.relative(path)}={digests[str(path)]}" for path in source.paths)]
    parts += [f"{model.name}|{model.materialized}|{model.description}|{model.sql}" for model in models]
    return blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _pointer(folder: Path) -> Pointer | None:
    """The pointer, or None when there is none that can be read."""
    try:
        return read_pointer(folder)
    except SnapshotUnusable:
        return None


def _point(folder: Path, before: Pointer | None, manifest: Manifest, changed: bool) -> None:
    """Make the snapshot current, unless it is already and nobody has to hear of it."""
    if before is not None and not changed and before.rolled_back_from is None:
        return
    published_at = time.time() if changed or before is None else before.published_at
    published = {**(before.published if before else {}), manifest.snapshot_id: published_at}
    write_pointer(folder, Pointer(manifest.snapshot_id, published_at, manifest.is_demo, None, published))


def _prune(folder: Path, kept: int) -> None:
    """Keep the current snapshot and the others published last, `kept` in all."""
    others = [one.snapshot_id for one in kept_snapshots(folder) if not one.is_current]
    for snapshot_id in others[kept - 1 :]:
        snapshot_path(folder, snapshot_id).unlink(missing_ok=True)


def _bar(what: str, total: int, unit: str, enabled: bool) -> tqdm[Any]:
    # disable=None: nothing when standard error is no terminal; a log of redrawn lines helps nobody.
    disable = None if enabled else True
    return tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", disable=disable, mininterval=0.5)
