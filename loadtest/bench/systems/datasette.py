"""Datasette: HTTP over SQLite, tuned as its documentation advises; and over DuckDB, with the plugin datasette-parquet."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from urllib.parse import urlencode

from ..given import Given
from ..portable_sql import DATES, KINDS, Dialect, portable_sql, sqlite_money
from ..workload import Question
from .base import PEERS_BIN, Ask, System, peer_version


class Datasette(System):
    """A canned query for each kind of question, with named parameters."""

    name = "datasette"
    title = "Datasette"
    caches = False
    given = (
        "the models in SQLite with an index for each filter and ANALYZE; immutable mode with inspect data, canned queries "
        "with parameters, 200 MB of page cache a connection, a time limit that nothing hits; one process with 3 SQL threads "
        "(its default); it caches no answers"
    )

    def __init__(self, folder: Path, given: Given) -> None:
        super().__init__(folder)
        self._given = given
        self.version = peer_version("datasette")

    def start(self) -> None:
        """Write its metadata and inspect data, then serve."""
        dialect = Dialect(_parameter, sqlite_money)
        queries = {
            f"{kind}_{whose}": {"sql": portable_sql(kind, dialect, department=whose == "department")}
            for kind in KINDS
            for whose in ("department", "all")
        }
        metadata, counts = self.folder / "metadata.json", self.folder / "inspect.json"
        metadata.write_text(json.dumps({"databases": {"bench": {"queries": queries}}}))
        program = str(PEERS_BIN / "datasette")
        subprocess.run([program, "inspect", str(self._given.sqlite), "--inspect-file", str(counts)], check=True)
        settings = _settings(sql_time_limit_ms=30_000, num_sql_threads=3, cache_size_kb=200_000)
        command = [program, "serve", "-i", str(self._given.sqlite), "--inspect-file", str(counts), "-m", str(metadata)]
        self._run([*command, *settings, "-h", "127.0.0.1", "-p", str(self.port)], "/-/versions.json")

    def ask(self, question: Question) -> Ask:
        """Only what the query uses is sent."""
        whose = "all" if question.department is None else "department"
        wanted = (*DATES, "department", "limit")
        values = {name: value for name, value in question.values.items() if name in wanted}
        return Ask(f"/bench/{question.kind}_{whose}.json?" + urlencode({**values, "_shape": "array"}))


class DatasetteParquet(System):
    """The plugin runs DuckDB inside Datasette; on a DuckDB file it is faster than on Parquet."""

    name = "datasette_parquet"
    title = "Datasette with datasette-parquet (DuckDB)"
    caches = False
    given = (
        "the models in a DuckDB file that holds nothing else, in the snapshot's order, opened read only by the plugin; SQL "
        "by GET, JSON rows, a time limit that nothing hits; one process with 3 SQL threads (its default), DuckDB on all "
        "cores; it caches no answers"
    )

    def __init__(self, folder: Path, given: Given) -> None:
        super().__init__(folder)
        self._given = given
        self.version = f"{peer_version('datasette-parquet')}, DuckDB {peer_version('duckdb')}"

    def start(self) -> None:
        """Write the plugin's configuration, then serve."""
        metadata = self.folder / "metadata-parquet.json"
        plugin = {"bench": {"file": str(self._given.duckdb)}}
        metadata.write_text(json.dumps({"plugins": {"datasette-parquet": plugin}}))
        command = [str(PEERS_BIN / "datasette"), "serve", "-m", str(metadata), "-h", "127.0.0.1", "-p", str(self.port)]
        self._run([*command, *_settings(sql_time_limit_ms=30_000, num_sql_threads=3)], "/-/versions.json")

    def ask(self, question: Question) -> Ask:
        """Values are written into the SQL."""
        return Ask("/bench.json?" + urlencode({"sql": question.sql(), "_shape": "array"}))


def _settings(**chosen: int) -> list[str]:
    return [part for name, value in chosen.items() for part in ("--setting", name, str(value))]


def _parameter(name: str) -> str:
    """Everything in a query string is text to SQLite, and no number is greater than a text."""
    return "cast(:limit as integer)" if name == "limit" else f":{name}"
