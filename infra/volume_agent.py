"""Runs in a container that has the stack's volumes under /volumes: reads them for a backup, fills them for a restore.

It talks with volumes.py by frames (volume_reading.py) on standard input and output. Modes: `weigh`, `read`, `fill`,
`exchange` (puts what was filled in the place of what is there, all of it or nothing), `undo` (the way back), `discard` (what
was replaced, or filled in vain).
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path
from typing import IO

import volume_reading as reading
from volume_reading import CHUNK, INCOMING, OURS, OUTGOING, Frame, copy, receive, send, weigh


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
    discard(INCOMING)
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
        discard(INCOMING)
        raise


def exchange(incoming: str, outgoing: str) -> None:
    """In every volume: what there is into `outgoing`, what `incoming` holds into its place. All of it, or nothing."""
    discard(outgoing)
    done: list[tuple[Path, Path]] = []
    try:
        for root in sorted(reading.ROOT.iterdir()):
            as_it_is = root.stat()
            (root / outgoing).mkdir(mode=0o700)
            moves = [(path, root / outgoing / path.name) for path in root.iterdir() if path.name not in OURS]
            moves += [(path, root / path.name) for path in (root / incoming).iterdir()]
            for source, target in moves:
                source.rename(target)
                done.append((source, target))
            wear(root, (root / incoming).stat())
            wear(root / outgoing, as_it_is)
            (root / incoming).rmdir()
    except BaseException:
        for source, target in reversed(done):
            source.parent.mkdir(exist_ok=True, mode=0o700)
            target.rename(source)
        raise
    os.sync()


def wear(folder: Path, status: os.stat_result) -> None:
    """Give a folder another's owner and mode."""
    os.chown(folder, status.st_uid, status.st_gid)
    folder.chmod(stat.S_IMODE(status.st_mode) & 0o777)


def discard(name: str) -> None:
    """Remove our own folder of that name from every volume."""
    for root in reading.ROOT.iterdir():
        if (root / name).is_dir():
            shutil.rmtree(root / name)


def serve(mode: str, commands: IO[bytes], answers: IO[bytes]) -> None:
    """One mode, to its end."""
    if mode == "weigh":
        send(answers, weigh())
    elif mode == "read":
        while frame := receive(commands):
            copy(frame["copy"], answers)
    elif mode == "fill":
        fill_all(commands)
    elif mode in ("exchange", "undo"):
        exchange(*((INCOMING, OUTGOING) if mode == "exchange" else (OUTGOING, INCOMING)))
    elif mode == "discard":
        discard(OUTGOING)
        discard(INCOMING)
    if mode in ("fill", "exchange", "undo", "discard"):
        send(answers, {"ok": mode})


def main(mode: str) -> int:
    """The exit code is 1, with a frame `error`, when something failed."""
    try:
        serve(mode, sys.stdin.buffer, sys.stdout.buffer)
    except (OSError, ValueError, KeyError) as error:
        send(sys.stdout.buffer, {"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
