"""Regular files, opened without waiting: a pipe that somebody left in a folder must not hold up who reads it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading. Anything else, a pipe say, is an `OSError` and never waited for."""
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - Path.open takes no opener; callers close
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(0, "not a regular file", str(path))
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_small(path: Path, max_bytes: int) -> bytes:
    """A regular file's content. Raises `OSError`, and `ValueError` when it is larger than `max_bytes`."""
    with open_file(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"larger than {max_bytes:,} bytes")
    return content
