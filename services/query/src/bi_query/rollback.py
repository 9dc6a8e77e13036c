"""Going back to an earlier snapshot: the pointer moves, every replica follows, nothing is built."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from .build import verify
from .errors import PublishError
from .snapshot_files import (
    Pointer,
    SnapshotUnusable,
    exclusive,
    read_pointer,
    snapshot_files,
    snapshot_path,
    write_pointer,
)

_LOCK_WAIT_SECONDS = 10.0


@dataclass(frozen=True)
class Kept:
    """A snapshot of the folder; `published_at` in seconds since the epoch."""

    snapshot_id: str
    published_at: float
    file_bytes: int
    is_current: bool
    is_rolled_back: bool


def kept_snapshots(folder: Path) -> list[Kept]:
    """The snapshots of a folder, the one published last first. A damaged pointer names none as current."""
    try:
        pointer = read_pointer(folder)
    except SnapshotUnusable:
        pointer = None
    kept = []
    for path in snapshot_files(folder):
        stat = path.stat()
        published_at = pointer.published.get(path.stem, stat.st_mtime) if pointer else stat.st_mtime
        is_current = pointer is not None and pointer.snapshot_id == path.stem
        is_rolled_back = pointer is not None and pointer.rolled_back_from == path.stem
        kept.append(Kept(path.stem, published_at, stat.st_size, is_current, is_rolled_back))
    return sorted(kept, key=lambda one: one.published_at, reverse=True)


def roll_back(folder: Path, snapshot_id: str | None = None) -> Kept:
    """Make a kept snapshot current: the one named, else the one published before the current. Raises `PublishError`.

    What was current is remembered: it is not published again by itself until the data or the models change.
    """
    if not folder.is_dir():
        raise PublishError(f"{folder} does not exist: nothing was published")
    with exclusive(folder, _LOCK_WAIT_SECONDS):
        kept = kept_snapshots(folder)
        target = _named(kept, snapshot_id) if snapshot_id else _before_current(kept, folder)
        manifest = verify(snapshot_path(folder, target.snapshot_id))
        try:
            pointer = read_pointer(folder)
        except SnapshotUnusable:
            pointer = None
        left = (pointer.rolled_back_from or pointer.snapshot_id) if pointer else None
        write_pointer(
            folder,
            Pointer(
                target.snapshot_id,
                target.published_at,
                manifest.is_demo,
                None if left == target.snapshot_id else left,
                {one.snapshot_id: one.published_at for one in kept},
            ),
        )
        return dataclasses.replace(target, is_current=True, is_rolled_back=False)


def _named(kept: list[Kept], snapshot_id: str) -> Kept:
    for one in kept:
        if one.snapshot_id == snapshot_id:
            return one
    known = ", ".join(one.snapshot_id for one in kept) or "none"
    raise PublishError(f"there is no snapshot {snapshot_id!r}; kept are: {known}")


def _before_current(kept: list[Kept], folder: Path) -> Kept:
    places = [place for place, one in enumerate(kept) if one.is_current]
    if not places:
        raise PublishError(f"the pointer of {folder} names no kept snapshot; say which to take (bi-query snapshots)")
    if places[0] + 1 >= len(kept):
        raise PublishError("there is no earlier snapshot to go back to (BI_SNAPSHOTS_KEPT says how many are kept)")
    return kept[places[0] + 1]
