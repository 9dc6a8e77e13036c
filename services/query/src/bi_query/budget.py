"""What one publish may use: time, and room on the disk. Its memory is the engine's own limit."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from .errors import PublishError
from .settings import Settings

_SHARE_OF_FREE_DISK = 0.9


class Budget:
    """Begins with its creation. `check` is called while the work goes on."""

    def __init__(self, settings: Settings) -> None:
        self._seconds = settings.publish_timeout_seconds
        self._deadline = time.monotonic() + self._seconds
        free_bytes = int(shutil.disk_usage(settings.snapshot_dir).free * _SHARE_OF_FREE_DISK)
        wanted_bytes = settings.snapshot_max_bytes
        self._max_bytes = free_bytes if wanted_bytes is None else min(wanted_bytes, free_bytes)
        by_setting = self._max_bytes == wanted_bytes
        self._limit = "BI_SNAPSHOT_MAX_BYTES" if by_setting else "nine tenths of what was free on its disk"

    def check_time(self) -> None:
        """Raises `PublishError` once the time is over."""
        if time.monotonic() > self._deadline:
            raise PublishError(f"publishing took longer than {self._seconds:g} s (BI_PUBLISH_TIMEOUT_SECONDS)")

    def check(self, files: Iterable[Path], origins: Iterable[Path]) -> None:
        """Raises `PublishError`, naming what is being worked on, once the time is over or `files` are too large."""
        used = sum(_size(path) for path in files)
        named = ", ".join(map(str, origins)) or "the models"
        if used > self._max_bytes:
            limits = f"{self._max_bytes:,} bytes ({self._limit})"
            raise PublishError(f"{named}: the snapshot would be larger than {limits}; it was {used:,} bytes by then")
        try:
            self.check_time()
        except PublishError as error:
            raise PublishError(f"{named}: {error}") from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
