"""What the tests of rules, objectives and Alertmanager share.

promtool and amtool come from Debian's `prometheus` and `prometheus-alertmanager` (any version since 2.42 and 0.25).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = sorted((ROOT / "alerts/rules").glob("*.yaml"))

Rule = dict[str, Any]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules() -> list[Rule]:
    return [rule for path in RULES for group in load(path)["groups"] for rule in group["rules"]]


def alerts() -> list[Rule]:
    return [rule for rule in rules() if "alert" in rule]


def alert_names() -> list[str]:
    return sorted({rule["alert"] for rule in alerts()})


def tool(name: str, package: str) -> str:
    """The program's path; skips where it is missing, and fails in CI, where nothing may be skipped for that."""
    found = shutil.which(name)
    if found:
        return found
    message = f"{name} is not installed (Debian: {package})"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def passes(*command: str | Path, **environment: str) -> str:
    """Run a command that must succeed; its output."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
