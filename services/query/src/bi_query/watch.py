"""`bi-query watch`: publish whenever the data or the catalogue has changed and is complete.

It polls. The kernel's notices of changed files do not cross network mounts or the bind mounts of some hosts, and would
still not say when a file is complete; a look costs one `stat` per file. Each publish runs in a process of its own: its
memory is given back, its time is bounded, and what kills it (a hostile file, the kernel's out-of-memory killer) is a
failed publish, not a dead publisher.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import PublishError
from .inputs import inputs
from .parquet_files import is_whole
from .publish import note_failure
from .publish_status import beat, read_status
from .settings import Settings
from .snapshot_files import SnapshotUnusable, read_pointer, snapshot_path
from .sources import Stamp, discover, stamp, unfinished_folder

logger = logging.getLogger(__name__)

EXIT_BUSY = 75
"""What `bi-query publish` returns when another publish runs (EX_TEMPFAIL)."""
_PUBLISH = [sys.executable, "-m", "bi_query.cli", "publish", "--quiet", "--keep-rollback"]
_CATALOGUE_FILES = frozenset({".sql", ".yaml"})
_BEAT_SECONDS = 5.0
_CHILD_POLL_SECONDS = 0.5
_LONGEST_RETRY_SECONDS = 900.0
_OVER_TIME_SECONDS = 30.0
_STOP_SECONDS = 10.0
_SAID_CHARS = 2000


@dataclass(frozen=True)
class Look:
    """What lay there at one moment: every file that counts, what is not whole yet, and what kept us from looking."""

    stamps: Mapping[str, Stamp | None]
    unfinished: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a publish ended: its exit code (negative: the signal that ended it) and what it said."""

    code: int
    said: str


def look(settings: Settings, known_whole: set[tuple[str, Stamp | None]]) -> Look:
    """Look at data and catalogue. `known_whole` remembers the files that need no second reading."""
    stamps: dict[str, Stamp | None] = {}
    unfinished = ""
    try:
        given = inputs(settings)
        for path in _catalogue_files(given.catalogue_dir):
            stamps[str(path)] = stamp(path)
        for source in discover(given.data_dir):
            unfinished = unfinished or unfinished_folder(source)
            for path in source.paths:
                seen = str(path), stamp(path)
                stamps[seen[0]] = seen[1]
                if seen not in known_whole:
                    if is_whole(path):
                        known_whole.add(seen)
                    else:
                        unfinished = unfinished or str(path)
    except (PublishError, OSError) as error:  # publishing will say the same, where it is seen
        stamps[f"fault: {error}"] = None
    known_whole.intersection_update(stamps.items())
    return Look(stamps, unfinished)


def _catalogue_files(folder: Path | None) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix in _CATALOGUE_FILES) if folder else iter(())


class Watcher:
    """Looks, waits for what is being written, publishes; `stop` ends it between two looks or in the middle of a publish."""

    def __init__(
        self,
        settings: Settings,
        stop: threading.Event,
        run: Callable[[], Outcome] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._stop = stop
        self._run = run or self._publish_apart
        self._clock = clock
        self._seen: Mapping[str, Stamp | None] | None = None
        self._done: Mapping[str, Stamp | None] | None = None
        self._failed: Mapping[str, Stamp | None] | None = None
        self._changed_at = self._retry_at = self._retry_seconds = 0.0
        self._pending_since: float | None = None
        self._whole: set[tuple[str, Stamp | None]] = set()
        self._served: dict[str, Stamp] = {}
        self._beaten_at = float("-inf")
        self._doing = "starting"

    def watch(self) -> None:
        """Until stopped."""
        logger.info("watching", extra={"fields": {"interval_seconds": self._settings.publish_interval_seconds}})
        while not self._stop.is_set():
            try:
                pause = self.turn()
            except Exception:  # whatever happens, tomorrow's data must still be published
                logger.exception("a look failed")
                pause = self._settings.publish_interval_seconds
            until = self._clock() + pause
            while not self._stop.wait(max(0.0, min(_BEAT_SECONDS, until - self._clock()))) and self._clock() < until:
                self._say(self._doing)
        logger.info("stopped")

    def turn(self) -> float:
        """One look and what follows from it; seconds until the next."""
        settings, now = self._settings, self._clock()
        self._say(self._doing)
        seen = look(settings, self._whole)
        if seen.stamps != self._seen:
            self._seen, self._changed_at = seen.stamps, now
        if seen.stamps == self._done and self._is_snapshot_there():
            self._pending_since = None
            return self._pause("idle")
        if seen.stamps == self._failed:
            return self._pause("failing") if now < self._retry_at else self._attempt(seen)
        if self._pending_since is None:
            self._pending_since = now
        settling = self._changed_at + settings.publish_settle_seconds - now
        is_patient = now - self._pending_since < settings.publish_patience_seconds
        if is_patient and settling > 0:
            return self._pause("waiting for files to settle", settling)
        if is_patient and seen.unfinished:
            return self._pause(f"waiting for {seen.unfinished} to be complete")
        return self._attempt(seen)

    def _attempt(self, seen: Look) -> float:
        self._say("publishing")
        started = time.time()
        outcome = self._run()
        fields = {"exit_code": outcome.code, "said": outcome.said}
        if outcome.code == EXIT_BUSY:
            logger.info("another publish is running", extra={"fields": fields})
            return self._pause("waiting for another publish")
        self._pending_since = None
        self._served.clear()
        if outcome.code == 0:
            logger.info("published", extra={"fields": fields})
            self._done, self._failed, self._retry_seconds = seen.stamps, None, 0.0
            return self._pause("idle")
        if self._stop.is_set():
            return 0
        self._note(outcome.said, started)
        longest = max(_LONGEST_RETRY_SECONDS, self._settings.publish_interval_seconds)
        self._retry_seconds = min(longest, max(self._settings.publish_interval_seconds, self._retry_seconds * 2))
        self._done, self._failed = None, seen.stamps  # taking the bad file away again is news, too
        self._retry_at = self._clock() + self._retry_seconds
        fields["retry_seconds"] = self._retry_seconds
        logger.error("publishing failed; the old snapshot keeps serving", extra={"fields": fields})
        return self._pause("failing")

    def _is_snapshot_there(self) -> bool:
        """Whether what the pointer names is there, as it was when first seen. If not, publishing makes it anew."""
        folder = self._settings.snapshot_dir
        try:
            pointer = read_pointer(folder)
        except SnapshotUnusable:
            return False
        seen = stamp(snapshot_path(folder, pointer.snapshot_id)) if pointer else None
        return seen is not None and pointer is not None and self._served.setdefault(pointer.snapshot_id, seen) == seen

    def _pause(self, doing: str, seconds: float | None = None) -> float:
        self._say(doing)
        interval = self._settings.publish_interval_seconds
        return interval if seconds is None else min(interval, seconds)

    def _say(self, doing: str) -> None:
        """Beat, at most every `_BEAT_SECONDS` while nothing changes; log what changes."""
        if doing != self._doing:
            logger.info(doing)
        elif self._clock() - self._beaten_at < _BEAT_SECONDS:
            return
        self._doing, self._beaten_at = doing, self._clock()
        try:
            self._settings.snapshot_dir.mkdir(parents=True, exist_ok=True)
            beat(self._settings.snapshot_dir, doing)
        except OSError as error:
            logger.warning("heartbeat not written", extra={"fields": {"error": str(error)}})

    def _publish_apart(self) -> Outcome:
        """Publish in a process of its own; end it when its time is over, or ours."""
        deadline = self._clock() + self._settings.publish_timeout_seconds + _OVER_TIME_SECONDS
        how: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "backslashreplace"}
        with subprocess.Popen(_PUBLISH, **how) as process:  # noqa: S603
            while True:
                try:
                    said, _ = process.communicate(timeout=_CHILD_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    self._say("publishing")
                if self._stop.is_set() and deadline > self._clock() + _STOP_SECONDS:
                    process.terminate()
                    deadline = self._clock() + _STOP_SECONDS
                if self._clock() > deadline:
                    process.kill()
        said = said.strip()[-_SAID_CHARS:]
        if process.returncode < 0:
            said = f"publishing was ended by signal {-process.returncode} (9: out of memory, or out of time) {said}"
        return Outcome(process.returncode, said.strip())

    def _note(self, failure: str, started: float) -> None:
        """Put a failure into the status, where its process could not."""
        with contextlib.suppress(OSError, ValueError, PublishError):
            status = read_status(self._settings.snapshot_dir)
            if status is None or status.attempted_at < started:
                note_failure(self._settings.snapshot_dir, failure, started)
