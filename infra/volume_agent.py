"""Runs in a container that has the stack's volumes under /volumes: reads them for a backup, fills them for a restore.

It talks with volumes.py by frames (volume_reading.py) on standard input and output. Modes: `weigh`, `state`, `read`, `fill`,
`exchange` (puts what was filled in the place of what is there), `undo` (the way back), `commit` (closes it and deletes what
was replaced), `discard` (what was filled in vain).

It may be killed at any moment. Each volume's journal is written before the first change and goes after the last, so that
`undo` leads back from wherever `exchange` or another `undo` ended, and `commit` forward from wherever a `commit` did.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
import sys
from pathlib import Path
from typing import IO

import volume_reading as reading
from volume_reading import (
    CHUNK,
    COMMITTED,
    DRAFT,
    INCOMING,
    JOURNAL,
    OURS,
    OUTGOING,
    Frame,
    copy,
    receive,
    send,
    state,
    weigh,
)


def inside(base: Path, path: str) -> Path:
    """`path` below `base`. Raises `ValueError` when it leads anywhere else."""
    if path == ".":
        return base
    parts = path.split("/")
    if {"", ".", ".."} & set(parts) or parts[0] in OURS or "\0" in path:
        raise ValueError(f"{path!r} is no path inside a volume")
    return base / path


def fill(frame: Frame, stream: IO[bytes]) -> None:
    """Write one file or folder beside what the volume holds, with owner and mode."""
    target = inside(reading.ROOT / frame["volume"] / INCOMING, frame["path"])
    if frame["bytes"] is None:
        target.mkdir(exist_ok=frame["path"] == ".", mode=0o700)
        os.chown(target, frame["uid"], frame["gid"])
        target.chmod(frame["mode"] & 0o777)
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(target, flags, 0o600), "wb") as file:
        left = frame["bytes"]
        while left:
            piece = stream.read(min(CHUNK, left))
            if not piece:
                raise OSError(f"{frame['path']} ended early")
            file.write(piece)
            left -= len(piece)
        file.flush()
        os.fchmod(file.fileno(), frame["mode"] & 0o777)
        os.fchown(file.fileno(), frame["uid"], frame["gid"])
    os.utime(target, (frame["mtime"], frame["mtime"]))


def fill_all(stream: IO[bytes]) -> None:
    """Every frame until `end`. What was filled goes when any of it fails."""
    discard()
    try:
        while True:
            frame = receive(stream)
            if frame is None:
                raise OSError("the stream ended before its end")
            if "end" in frame:
                break
            fill(frame, stream)
        os.sync()
    except BaseException:
        discard()
        raise


def exchange() -> None:
    """In every volume: what there is into OUTGOING, what INCOMING holds into its place. All is undone when it fails."""
    left = {name: volumes for name, volumes in state().items() if name != "incoming" and volumes}
    if left:
        raise OSError(f"a restore of before has not come to its end: {json.dumps(left)}")
    try:
        for root in roots():
            as_it_is, filled = root.stat(), (root / INCOMING).stat()
            write_journal(root, as_it_is)
            (root / OUTGOING).mkdir(mode=0o700)
            for path in own(root):
                path.rename(root / OUTGOING / path.name)
            for path in list((root / INCOMING).iterdir()):
                path.rename(root / path.name)
            wear(root, filled.st_uid, filled.st_gid, filled.st_mode)
            (root / INCOMING).rmdir()
        os.sync()
    except BaseException:
        undo()
        raise


def undo() -> None:
    """What was there back into its place, in every volume that has a journal; what took the place goes into INCOMING."""
    for root in roots():
        if not (root / JOURNAL).exists():
            continue
        journal, replaced, aside = json.loads((root / JOURNAL).read_bytes()), root / OUTGOING, root / INCOMING
        aside.mkdir(exist_ok=True, mode=0o700)
        for path in own(root):
            # Of the old names, those that are not in OUTGOING have not been moved, or are back already.
            if path.name not in journal["names"] or os.path.lexists(replaced / path.name):
                remove(aside / path.name)
                path.rename(aside / path.name)
        if replaced.exists():
            for path in list(replaced.iterdir()):
                path.rename(root / path.name)
            replaced.rmdir()
        missing = set(journal["names"]) - {path.name for path in own(root)}
        if missing:
            raise OSError(f"{root.name}: {sorted(missing)} were there before and are not")
        wear(root, journal["uid"], journal["gid"], journal["mode"])
        os.sync()
        (root / JOURNAL).unlink()


def commit() -> None:
    """Close the way back in every volume, then delete what was replaced. One that is closed is never opened again."""
    for root in roots():
        if (root / JOURNAL).exists():
            (root / JOURNAL).rename(root / COMMITTED)
    os.sync()
    for root in roots():
        if (root / COMMITTED).exists():
            remove(root / OUTGOING)
            (root / COMMITTED).unlink()


def roots() -> list[Path]:
    """The volumes."""
    return sorted(reading.ROOT.iterdir())


def own(root: Path) -> list[Path]:
    """What a volume holds of its owner's, listed before anything of it is moved."""
    return [path for path in root.iterdir() if path.name not in OURS]


def write_journal(root: Path, as_it_is: os.stat_result) -> None:
    """What the volume holds and how its root is, complete and on the disk before anything is moved."""
    journal = {"names": sorted(path.name for path in own(root)), "mode": stat.S_IMODE(as_it_is.st_mode)}
    with (root / DRAFT).open("w") as file:
        json.dump({**journal, "uid": as_it_is.st_uid, "gid": as_it_is.st_gid}, file)
        file.flush()
        os.fsync(file.fileno())
    (root / DRAFT).rename(root / JOURNAL)


def wear(folder: Path, uid: int, gid: int, mode: int) -> None:
    """Give a folder an owner and a mode."""
    os.chown(folder, uid, gid)
    folder.chmod(stat.S_IMODE(mode) & 0o777)


def remove(path: Path) -> None:
    """A file, or a folder with all in it, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard() -> None:
    """Remove what was filled in vain. Never touches what was replaced."""
    for root in roots():
        remove(root / INCOMING)
        remove(root / DRAFT)


def serve(mode: str, commands: IO[bytes], answers: IO[bytes]) -> None:
    """One mode, to its end."""
    if mode == "weigh":
        send(answers, weigh())
    elif mode == "read":
        while frame := receive(commands):
            copy(frame["copy"], answers)
    elif mode == "fill":
        fill_all(commands)
    elif mode == "state":
        send(answers, state())
    else:
        {"exchange": exchange, "undo": undo, "commit": commit, "discard": discard}[mode]()
    if mode not in ("weigh", "read", "state"):
        send(answers, {"ok": mode})


def main(mode: str) -> int:
    """The exit code is 1, with a frame `error`, when something failed."""
    # A volume's files are all open at once (volume_reading.take); often 1024 may be, unless more is asked for.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        serve(mode, sys.stdin.buffer, sys.stdout.buffer)
    except (OSError, ValueError, KeyError) as error:
        send(sys.stdout.buffer, {"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
