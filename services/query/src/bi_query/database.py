"""One DuckDB instance over a snapshot's file: read only, locked, with memory and spill space of its own.

DuckDB counts memory per instance, not per query. Queries that share an instance can take each other's memory; one that
has an instance for itself can only run out of its own.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import duckdb

from .settings import Settings


class Database:
    """An open instance. `name` is what a qualified name begins with; raises what DuckDB raises on a bad file."""

    def __init__(
        self, path: Path, name: str, spill_folder: Path, memory_bytes: int, spill_bytes: int, settings: Settings
    ) -> None:
        config: dict[str, Any] = {
            "threads": settings.max_running_queries,
            # For files that are far away; eight of them by default, each with 8 MB of stack that counts as memory.
            "async_threads": 0,
            "memory_limit": f"{memory_bytes}B",
            "temp_directory": str(spill_folder),
            "max_temp_directory_size": f"{spill_bytes}B",
            "autoload_known_extensions": "false",
            "autoinstall_known_extensions": "false",
            "allow_community_extensions": "false",
        }
        self.spill_max_bytes = spill_bytes
        self._spill_folder = spill_folder
        self._idle_cursors: list[duckdb.DuckDBPyConnection] = []
        # Attached rather than opened: a process can open a file only once, and all that do share one instance.
        self._connection = duckdb.connect(":memory:", config=config)
        try:
            self._connection.execute(f"ATTACH {_quoted(str(path), chr(39))} AS {_quoted(name, chr(34))} (READ_ONLY)")
            self._connection.execute(f"USE {_quoted(name, chr(34))}")
            self._connection.execute("DETACH memory")  # could be written to
            self._connection.execute("SET GLOBAL TimeZone = 'UTC'")
            # Backstop behind the engine's own time-out, should an interrupt ever be lost.
            self._connection.execute(
                f"SET GLOBAL max_execution_time = {int(settings.query_timeout_seconds * 1000) + 2000}"
            )
            self._connection.execute("SET GLOBAL errors_as_json = true")
            # Not in the configuration above: there it would forbid the temp_directory beside it.
            self._connection.execute("SET GLOBAL enable_external_access = false")
            self._connection.execute("SET GLOBAL lock_configuration = true")
        except BaseException:
            self._connection.close()
            raise

    def take_cursor(self) -> duckdb.DuckDBPyConnection:
        """A cursor for one query at a time (any thread)."""
        try:
            return self._idle_cursors.pop()
        except IndexError:
            return self._connection.cursor()

    def new_cursor(self) -> duckdb.DuckDBPyConnection:
        """A cursor with nothing of its own yet, to be closed after use (any thread)."""
        return self._connection.cursor()

    def give_back(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Return a cursor whose query ended by itself. An interrupted one must be closed instead."""
        self._idle_cursors.append(cursor)

    def spilled_bytes(self) -> int:
        """What it has on disk now. DuckDB 2.0 counts only part of it against `max_temp_directory_size`."""
        total = 0
        with contextlib.suppress(FileNotFoundError), os.scandir(self._spill_folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat().st_blocks * 512
        return total

    def close(self) -> None:
        """Close it; nothing may use it any more."""
        for connection in (*self._idle_cursors, self._connection):
            with contextlib.suppress(duckdb.Error):
                connection.close()
        self._idle_cursors.clear()


def _quoted(text: str, quote: str) -> str:
    return quote + text.replace(quote, quote * 2) + quote
