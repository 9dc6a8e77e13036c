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
    """An open instance, and the cursors it has at hand."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, spill_folder: Path, spill_max_bytes: int) -> None:
        self.spill_max_bytes = spill_max_bytes
        self._connection, self._spill_folder = connection, spill_folder
        self._idle_cursors: list[duckdb.DuckDBPyConnection] = []
        self.is_broken = False
        """Set when DuckDB gave it up: an internal error in one query refuses every later one."""

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
        with contextlib.suppress(OSError), os.scandir(self._spill_folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    total += entry.stat().st_blocks * 512
        return total

    def is_intact(self) -> bool:
        """Whether it can be given to somebody else: not given up, and with no database but the snapshot."""
        if self.is_broken:
            return False
        try:
            found = self._connection.execute("SELECT count(*) FROM duckdb_databases() WHERE NOT internal").fetchall()
        except duckdb.Error:
            return False
        return found == [(1,)]

    def close(self) -> None:
        """Close it; nothing may use it any more."""
        for connection in (*self._idle_cursors, self._connection):
            with contextlib.suppress(duckdb.Error):
                connection.close()
        self._idle_cursors.clear()


def open_shared(path: Path, spill_folder: Path, settings: Settings) -> Database:
    """The one instance of a process that opens the file itself. Raises what DuckDB raises on a bad file."""
    spill_bytes = settings.named_spill_bytes
    config = _config(spill_folder, settings.named_memory_bytes, spill_bytes, settings.engine_threads)
    connection = duckdb.connect(str(path), read_only=True, config=config)
    return Database(_locked(connection, settings), spill_folder, spill_bytes)


def open_private(path: Path, name: str, spill_folder: Path, settings: Settings) -> Database:
    """An instance beside the shared one. It attaches the file, for all that open it themselves share one instance.

    `name` is what a qualified name begins with. DuckDB would let it attach databases in memory; the guard does not, and
    `is_intact` looks.
    """
    spill_bytes = settings.ad_hoc_spill_bytes
    config = _config(spill_folder, settings.ad_hoc_memory_bytes, spill_bytes, settings.ad_hoc_threads)
    connection = duckdb.connect(":memory:", config=config)
    try:
        connection.execute(f"ATTACH {_quoted(str(path), chr(39))} AS {_quoted(name, chr(34))} (READ_ONLY)")
        connection.execute(f"USE {_quoted(name, chr(34))}")
        connection.execute("DETACH memory")  # could be written to
    except BaseException:
        connection.close()
        raise
    return Database(_locked(connection, settings), spill_folder, spill_bytes)


def _config(spill_folder: Path, memory_bytes: int, spill_bytes: int, threads: int) -> dict[str, Any]:
    return {
        "threads": threads,
        # For files that are far away; eight of them by default, each with 8 MB of stack that counts as memory.
        "async_threads": 0,
        "memory_limit": f"{memory_bytes}B",
        "temp_directory": str(spill_folder),
        "max_temp_directory_size": f"{spill_bytes}B",
        "autoload_known_extensions": "false",
        "autoinstall_known_extensions": "false",
        "allow_community_extensions": "false",
    }


def _locked(connection: duckdb.DuckDBPyConnection, settings: Settings) -> duckdb.DuckDBPyConnection:
    try:
        connection.execute("SET GLOBAL TimeZone = 'UTC'")
        # Backstop behind the engine's own time-out, should an interrupt ever be lost.
        connection.execute(f"SET GLOBAL max_execution_time = {int(settings.query_timeout_seconds * 1000) + 2000}")
        connection.execute("SET GLOBAL errors_as_json = true")
        # Not in the configuration: there it would forbid the temp_directory beside it.
        connection.execute("SET GLOBAL enable_external_access = false")
        connection.execute("SET GLOBAL lock_configuration = true")
    except BaseException:
        connection.close()
        raise
    return connection


def _quoted(text: str, quote: str) -> str:
    return quote + text.replace(quote, quote * 2) + quote
