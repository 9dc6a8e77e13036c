"""What publishing has to say to the service beside it: the last outcome, and that the publisher is alive.

`publish.json` is the outcome of the last publish. `publisher.json` is what the publisher does now; its modification time
is the heartbeat, for touching a file works on a full disk too.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from .snapshot_files import replace_file

STATUS = "publish.json"
HEARTBEAT = "publisher.json"


@dataclass(frozen=True)
class PublishStatus:
    """Times in seconds since the epoch; `failures` counts those since the last success."""

    ok: bool
    attempted_at: float
    succeeded_at: float
    seconds: float
    error: str | None = None
    failures: int = 0


def read_status(folder: Path) -> PublishStatus | None:
    """The last outcome; None when there is none. Raises `OSError` or `ValueError` when it cannot be read."""
    try:
        document = orjson.loads((folder / STATUS).read_bytes())
        return PublishStatus(
            bool(document["ok"]),
            float(document["attempted_at"]),
            float(document["succeeded_at"]),
            float(document["seconds"]),
            document.get("error"),
            int(document.get("failures", 0)),
        )
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / STATUS}: {error!r}") from error


def write_status(folder: Path, started: float, error: str | None) -> None:
    """Note the outcome of a publish that began at `started`. Raises `OSError`."""
    before = None
    with contextlib.suppress(OSError, ValueError):
        before = read_status(folder)
    now = time.time()
    status = PublishStatus(
        ok=error is None,
        attempted_at=started,
        succeeded_at=now if error is None else before.succeeded_at if before else 0.0,
        seconds=now - started,
        error=None if error is None else error.encode("utf-8", "backslashreplace").decode(),
        failures=0 if error is None else (before.failures if before else 0) + 1,
    )
    content = orjson.dumps(asdict(status))
    try:
        replace_file(folder / STATUS, content)
    except OSError:
        # A full disk has no room for a second file, but the first one's block is ours: a failure must be seen.
        (folder / STATUS).write_bytes(content)


def beat(folder: Path, doing: str) -> None:
    """Say that the publisher lives, and what it does. Raises `OSError`."""
    path = folder / HEARTBEAT
    content = orjson.dumps({"doing": doing})
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:
            os.utime(path)
            return
    try:
        replace_file(path, content)
    except OSError:
        os.utime(path)


def last_beat(folder: Path) -> float:
    """When the publisher was last alive; 0 when there never was one."""
    try:
        return (folder / HEARTBEAT).stat().st_mtime
    except OSError:
        return 0.0
