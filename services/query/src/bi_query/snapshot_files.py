"""The files of a snapshot folder: `<id>.duckdb`, the pointer `current.json`, `publish.json`, and where queries spill.

A snapshot's manifest lives inside its file, so a copied file is complete.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from .errors import BiQueryError

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
