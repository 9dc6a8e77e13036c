"""API keys for a service of a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bi_query.access import Role
from bi_query.keys import KeyFile

from .small import Small


def made_keys(file: Path, **roles: Role) -> dict[str, str]:
    """A new key in `file` for each name, with that role, by name."""
    return {name: KeyFile(file).add(name, role)[0] for name, role in roles.items()}


def cli(small: Small, file: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`bi-query keys` with these words, on `file` and the deployment's catalogue."""
    environment = {**os.environ, "BI_KEYS_FILE": str(file), "BI_CATALOGUE_DIR": str(small.catalogue)}
    done = subprocess.run(
        [sys.executable, "-m", "bi_query.cli", "keys", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def cli_keys(small: Small, file: Path, **words: str) -> dict[str, str]:
    """A key for each name, added by the command with that name and these words, by name."""
    return {name: cli(small, file, "add", name, *text.split()).stdout.strip() for name, text in words.items()}
