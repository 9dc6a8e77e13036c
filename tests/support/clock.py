"""The time of day as a program sees it, turned by a test: it jumps and the monotonic clock goes on, as when an administrator
or a time server sets a machine's clock.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import pytest

HOUR = 3600
JUMPS = (HOUR, 0, -HOUR, 0)
"""Forward, back, back again, forward: seconds ahead of the true time."""
SOURCE = Path(__file__).with_suffix(".c")


def built_into(folder: Path) -> Path:
    """The library that goes in front of a program; skips where nothing compiles it, under CI that is a failure."""
    if shutil.which("cc") is None:
        reason = "needs a C compiler (cc)"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    library = folder / "clock.so"
    flags = ["-shared", "-fPIC", "-O2", "-nostdlib", "-fno-builtin", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *flags, "-o", library, SOURCE], check=True, timeout=60)
    return library


def environment(library: Path, clock: Path) -> dict[str, str]:
    """What a program is started with that goes by the file `clock`, which need not be there."""
    return {"LD_PRELOAD": str(library), "TEST_CLOCK": str(clock)}


def offset(url: str) -> float:
    """By how many seconds the clock of the service at `url`, as its answers tell, is ahead of the true one."""
    told = httpx.get(f"{url}/health/live", timeout=10).headers["date"]
    return parsedate_to_datetime(told).timestamp() - time.time()
