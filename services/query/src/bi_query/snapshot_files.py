"""The files of a snapshot folder: `<id>.duckdb`, the pointer `current.json`, the lock, and where queries spill.

A snapshot's manifest lives inside its file, so a copied file is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from .errors import BiQueryError, PublishBusy

POINTER = "current.json"
MANIFEST_TABLE = "_bi.manifest"
_LOCK = ".publish.lock"
_LOCK_POLL_SECONDS = 0.2
_SNAPSHOT_NAME = re.compile(r"[0-9a-f]{16}\.duckdb")


class SnapshotUnusable(BiQueryError):
    """A pointer or snapshot file that cannot be opened; the text says which and why."""


@dataclass(frozen=True)
class Manifest:
    """What a snapshot holds. `relations` maps a name to `{"kind", "rows", "columns": [{"name", "type"}], "description"}`."""

    snapshot_id: str
    created_at: float
    relations: Mapping[str, Mapping[str, Any]]
    source_bytes: int
    is_demo: bool = False
    """Whether it was made of the demo data, with which the demo's named queries go."""

    def to_json(self) -> bytes:
        """The manifest as stored in the file."""
        return orjson.dumps(self.__dict__)

    @classmethod
    def from_json(cls, data: bytes | str) -> Manifest:
        """Inverse of `to_json`."""
        return cls(**orjson.loads(data))


@dataclass(frozen=True)
class Pointer:
    """Which snapshot is current, since when its data is published (seconds since the epoch), and what was before it."""

    snapshot_id: str
    published_at: float
    is_demo: bool = False
    rolled_back_from: str | None = None
    """The snapshot that somebody went back from: not published again by itself while its inputs stay the same."""
    published: Mapping[str, float] = field(default_factory=dict)
    """When each snapshot was last published, by id."""


def snapshot_path(folder: Path, snapshot_id: str) -> Path:
    """Where the snapshot with this id lies."""
    return folder / f"{snapshot_id}.duckdb"


def snapshot_files(folder: Path) -> list[Path]:
    """The snapshots of a folder, in no order. Files of other names are not ours."""
    return [path for path in folder.glob("*.duckdb") if _SNAPSHOT_NAME.fullmatch(path.name)]


def read_pointer(folder: Path) -> Pointer | None:
    """The current pointer, or None when nothing was ever published. Raises `SnapshotUnusable` on a damaged one."""
    path = folder / POINTER
    try:
        document = orjson.loads(path.read_bytes())
        left = document.get("rolled_back_from")
        pointer = Pointer(
            str(document["snapshot_id"]),
            float(document["published_at"]),
            bool(document.get("is_demo")),
            None if left is None else str(left),
            {str(name): float(when) for name, when in document.get("published", {}).items()},
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SnapshotUnusable(f"{path} is not a usable pointer: {error}") from error
    if not pointer.snapshot_id.isalnum():
        raise SnapshotUnusable(f"{path} names a snapshot that is no plain name")
    return pointer


def write_pointer(folder: Path, pointer: Pointer) -> None:
    """Make `pointer` current, atomically and durably. Only while holding the folder's lock."""
    known = {path.stem for path in snapshot_files(folder)} | {pointer.snapshot_id}
    published = {name: when for name, when in pointer.published.items() if name in known}
    replace_file(folder / POINTER, orjson.dumps({**pointer.__dict__, "published": published}))


@contextlib.contextmanager
def exclusive(folder: Path, wait_seconds: float = 0) -> Iterator[None]:
    """Hold the folder's lock, alone among all processes and hosts that write to it. Raises `PublishBusy`.

    The kernel lets go of it when its holder dies, however it dies.
    """
    deadline = time.monotonic() + wait_seconds
    with (folder / _LOCK).open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise PublishBusy(f"another publish is running on {folder}; wait for it to end") from error
            time.sleep(_LOCK_POLL_SECONDS)
        yield


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


def spill_folder(spill_dir: Path, snapshot_id: str) -> Path:
    """A folder for this process's spilled rows of one snapshot: containers may share the disk and have equal pids."""
    return spill_dir / f"{snapshot_id}-{_host()}-{os.getpid()}"


def remove_dead_spill(spill_dir: Path) -> None:
    """Delete what processes of this host that were killed left. Call it before this process spills."""
    for folder in spill_dir.glob(f"*-{_host()}-*"):
        pid = folder.name.rpartition("-")[2]
        if pid.isdigit() and (int(pid) == os.getpid() or not Path(f"/proc/{pid}").exists()):
            shutil.rmtree(folder, ignore_errors=True)


def _host() -> str:
    return socket.gethostname().replace("/", "_")
