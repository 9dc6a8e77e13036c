"""API keys for a service of a test."""

from __future__ import annotations

from pathlib import Path

from bi_query.access import Role
from bi_query.keys import KeyFile


def made_keys(file: Path, **roles: Role) -> dict[str, str]:
    """A new key in `file` for each name, with that role, by name."""
    return {name: KeyFile(file).add(name, role)[0] for name, role in roles.items()}
