"""Reading the stack's volumes, in the container beside them: what a backup holds of each, consistent while its owner works.

Also the frames that both sides speak: a line of JSON, and behind one that describes a file so many bytes as it says.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path("/volumes")
CHUNK = 1 << 20
INCOMING, OUTGOING = ".bi-restore", ".bi-replaced"
# In a volume while what it held is in OUTGOING: what that was, so that it can be put back from any moment on. Renamed to
# COMMITTED, the way back is closed.
JOURNAL, COMMITTED, DRAFT = ".bi-journal", ".bi-committed", ".bi-journal-draft"
OURS = {INCOMING, OUTGOING, JOURNAL, COMMITTED, DRAFT}
# What opening a link or a socket ends with. Every other error is one, and a backup without the file would be no backup.
NO_FILE = {errno.ELOOP, errno.ENXIO}
SNAPSHOT = re.compile(r"[0-9a-f]{16}\.duckdb")
# A block of Prometheus: written once, under another name until it is complete, then only read or deleted.
BLOCK = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}/")
DRAFTS = (".tmp-for-creation", ".tmp-for-deletion")
ATTEMPTS = 20

Frame = dict[str, Any]


def send(stream: IO[bytes], frame: Frame) -> None:
    """Write one frame's line."""
    stream.write(json.dumps(frame).encode() + b"\n")
    stream.flush()


def receive(stream: IO[bytes]) -> Frame | None:
    """The next frame's line, None at the end."""
    line = stream.readline()
    frame: Frame | None = json.loads(line) if line.endswith(b"\n") else None
    return frame


@dataclass
class Entry:
    """A file or folder of a volume, open: what happens to its name later changes nothing."""

    path: str
    status: os.stat_result
    file: IO[bytes] | None = None
    limit: int = 0

    def send(self, stream: IO[bytes]) -> None:
        """Its frame, then its first `limit` bytes. Raises `OSError` when it has become shorter."""
        about = {"path": self.path, "mode": stat.S_IMODE(self.status.st_mode) & 0o777, "mtime": self.status.st_mtime}
        owner = {"uid": self.status.st_uid, "gid": self.status.st_gid}
        send(stream, {**about, **owner, "bytes": self.limit if self.file else None})
        if self.file is None:
            return
        left = self.limit
        with self.file:
            while left:
                piece = self.file.read(min(CHUNK, left))
                if not piece:
                    raise OSError(f"{self.path} became shorter while it was copied")
                stream.write(piece)
                left -= len(piece)


@dataclass
class Taken:
    """A volume at one moment."""

    entries: list[Entry] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    current: str | None = None
    """The current snapshot's id, of the volume that has one."""

    def add(self, root: Path, path: str) -> Entry | None:
        """Open one; None when it is gone by now. What is neither file nor folder is left out, and said to be."""
        try:
            descriptor = os.open(root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            self.left_out.append(path)
            return None
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            entry = Entry(path, status, os.fdopen(descriptor, "rb"), status.st_size)
        else:
            os.close(descriptor)
            if not stat.S_ISDIR(status.st_mode):
                self.left_out.append(path)
                return None
            entry = Entry(path, status)
        self.entries.append(entry)
        return entry


def names(root: Path, below: str = "") -> Iterator[str]:
    """Every path of a volume, a folder before what is in it; drafts and our own folders left out."""
    try:
        found = sorted(os.scandir(root / below), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in found:
        if entry.name.endswith(DRAFTS) or (not below and entry.name in OURS):
            continue
        path = f"{below}{entry.name}"
        yield path
        if entry.is_dir(follow_symlinks=False):
            yield from names(root, f"{path}/")


def take(volume: str) -> Taken:
    """Open what a backup of the volume holds, consistent while its owner works on."""
    root = ROOT / volume
    taken = {"snapshots": take_snapshots, "audit": take_audit}.get(volume, take_everything)(root)
    taken.entries.insert(0, Entry(".", root.stat()))
    return taken


def take_everything(root: Path) -> Taken:
    """For owners that replace files by renaming, and those that are held still meanwhile."""
    taken = Taken()
    for path in names(root):
        taken.add(root, path)
    return taken


def take_snapshots(root: Path) -> Taken:
    """The pointer first, then the snapshots: they never change, and the pointer's is there unless it was just pruned."""
    for _ in range(ATTEMPTS):
        taken = Taken()
        pointer = taken.add(root, "current.json")
        for name in sorted(path.name for path in root.iterdir()):
            if SNAPSHOT.fullmatch(name) or name == "publish.json":
                taken.add(root, name)
        if pointer is None or pointer.file is None:
            return taken
        taken.current = json.loads(pointer.file.read())["snapshot_id"]
        pointer.file.seek(0)
        if f"{taken.current}.duckdb" in {entry.path for entry in taken.entries}:
            return taken
        time.sleep(0.1)
    raise OSError("the pointer names a snapshot that is not there: publish first, or roll back to one that is")


def take_audit(root: Path) -> Taken:
    """Whole lines. Newest file first, and again until nothing new is found: whenever files are moved aside meanwhile, the
    same one is met under two names (and taken once), and none is missed.
    """

    def age(path: str) -> tuple[str, int]:
        name, _, number = path.rpartition(".")
        return (name, int(number)) if number.isdigit() else (path, 0)

    taken, is_new = Taken(), True
    seen: set[int] = set()
    known: set[str] = set()
    while is_new:
        is_new = False
        for path in sorted(set(names(root)) - known, key=age):
            entry = taken.add(root, path)
            if entry is not None and entry.status.st_ino in seen:
                taken.entries.remove(entry)
            elif entry is not None:
                seen.add(entry.status.st_ino)
                known.add(path)
                is_new = True
    for entry in taken.entries:
        if entry.file is not None:
            entry.limit = whole_lines(entry.file, entry.limit)
    return taken


def whole_lines(file: IO[bytes], size: int) -> int:
    """How many of a file's first `size` bytes are complete lines. Leaves the file at its start."""
    end = size
    while end > 0:
        start = max(0, end - CHUNK)
        file.seek(start)
        place = file.read(end - start).rfind(b"\n")
        if place >= 0:
            file.seek(0)
            return start + place + 1
        end = start
    file.seek(0)
    return 0


def copy(volume: str, stream: IO[bytes]) -> None:
    """Send a volume. The frame `taken` says that its owner may go on; only what never changes comes after it."""
    taken = take(volume)
    later = [entry for entry in taken.entries if volume in ("snapshots", "audit") or BLOCK.match(entry.path)]
    for entry in taken.entries:
        if entry not in later:
            entry.send(stream)
    send(stream, {"taken": volume})
    for entry in later:
        entry.send(stream)
    send(stream, {"done": volume, "left_out": taken.left_out, "current": taken.current})


def weigh() -> Frame:
    """Files and bytes of each volume, and the free bytes of their disk."""
    weights = {}
    for root in sorted(ROOT.iterdir()):
        sizes = []
        for path in names(root):
            try:
                status = os.lstat(root / path)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                sizes.append(status.st_size)
        weights[root.name] = {"files": len(sizes), "bytes": sum(sizes)}
    disk = os.statvfs(next(ROOT.iterdir()))
    return {"volumes": weights, "free_bytes": disk.f_bavail * disk.f_frsize, "state": state()}


def state() -> Frame:
    """What a restore that did not come to its end has left: volumes by what lies in them.

    `replaced`: there is a way back. `committed`: the old data were being deleted. `unknown`: replaced by who knows whom.
    `incoming`: filled, not exchanged, or only in part.
    """
    found: dict[str, list[str]] = {"replaced": [], "committed": [], "unknown": [], "incoming": []}
    for root in sorted(ROOT.iterdir()):
        is_committed, is_journalled = ((root / name).exists() for name in (COMMITTED, JOURNAL))
        if is_committed:
            found["committed"].append(root.name)
        elif is_journalled:
            found["replaced"].append(root.name)
        elif (root / OUTGOING).exists():
            found["unknown"].append(root.name)
        if (root / INCOMING).exists():
            found["incoming"].append(root.name)
    return found
