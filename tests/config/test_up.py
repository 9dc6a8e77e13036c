"""`make up` where a service runs on older mounted files than those here; engine and Python are programs that answer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .test_stack_programs import ROOT, engine_of

# Says that it is new enough; runs what it is told to by answering for it.
PYTHON = """#!/bin/sh
case "$*" in
  -c*) exit {age};;
  *mounted.py) echo "mounted" >> {root}/asked; {mounted};;
esac
"""


def up(
    root: Path, *, mounted: str = "true", compose_up: str = "true", ps: str = "true", old_python: bool = False
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What it says, and what it asked the engine and `mounted.py` for."""
    for name in ("infra/up.sh", "infra/lib.sh"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for name in ("infra/engine.sh", "infra/images.sh", "python"):
        (root / name).write_text("#!/bin/sh\n")
        (root / name).chmod(0o755)
    (root / ".stack").mkdir()
    (root / "python").write_text(PYTHON.format(age=int(old_python), root=root, mounted=mounted))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BI_")}
    environment = (
        clean
        | engine_of(root, f"*' up '*) {compose_up};;", f"*' ps '*) {ps};;", "*) true;;")
        | {"PYTHON": str(root / "python")}
    )
    done = subprocess.run([root / "infra/up.sh"], env=environment, capture_output=True, text=True, check=False)
    asked = [line for line in (root / "asked").read_text().splitlines() if line == "mounted" or " up " in line]
    return done, ["mounted" if line == "mounted" else "up" for line in asked]


def test_a_service_that_is_unhealthy_on_its_old_files_gets_the_mended_ones_and_the_start_goes_on(
    tmp_path: Path,
) -> None:
    mended = tmp_path / "mended"
    done, asked = up(
        tmp_path, mounted=f"[ -e {mended} ] || echo up: restarting redis; touch {mended}", compose_up=f"[ -e {mended} ]"
    )
    assert done.returncode == 0, done.stderr
    assert "restarting redis" in done.stdout and "healthy after" in done.stdout
    assert asked == ["up", "mounted", "up", "mounted"]


@pytest.mark.parametrize("mounted", ["true", "echo prometheus: it runs on its old files >&2; exit 1"])
def test_where_no_service_was_restarted_a_start_that_failed_is_not_tried_again(tmp_path: Path, mounted: str) -> None:
    done, asked = up(tmp_path, mounted=mounted, compose_up="exit 1")
    assert done.returncode == 1 and "up: not healthy" in done.stderr
    assert ("runs on its old files" in done.stderr) == ("old files" in mounted)
    assert asked == ["up", "mounted"]


@pytest.mark.parametrize("status", ["Up 45 seconds (health: starting)", "Up 5 minutes (unhealthy)"])
def test_what_is_not_healthy_when_the_time_is_over_is_not_called_so(tmp_path: Path, status: str) -> None:
    done, _ = up(tmp_path, ps=f"echo 'redis {status}'")
    assert done.returncode == 1 and "healthy after" not in done.stdout
    assert f"redis {status}" in done.stderr


def test_without_a_new_enough_python_what_is_left_out_is_said(tmp_path: Path) -> None:
    done, asked = up(tmp_path, old_python=True)
    assert (done.returncode, asked) == (0, ["up"])
    assert (
        "no Python 3.11 or newer" in done.stderr and "a service that runs on older mounted files stays" in done.stderr
    )
