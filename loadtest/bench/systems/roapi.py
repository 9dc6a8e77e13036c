"""ROAPI: HTTP over Apache DataFusion (Rust), tables from Parquet held in memory, as its documentation advises for speed."""

from __future__ import annotations

from pathlib import Path

from ..given import TABLES, Given
from ..workload import Question
from .base import PEERS_BIN, Ask, System, peer_version


class Roapi(System):
    """SQL as the body of a POST; all cores by default."""

    name = "roapi"
    title = "ROAPI"
    caches = False
    given = "the models as Parquet, loaded into memory (its default); SQL by POST, JSON; all cores; it has no cache"

    def __init__(self, folder: Path, given: Given) -> None:
        super().__init__(folder)
        self._given = given
        self.version = peer_version("roapi")

    def start(self) -> None:
        """Load all tables."""
        tables = [part for table in TABLES for part in ("-t", f"{table}={self._given.parquet(table)}")]
        self._run([str(PEERS_BIN / "roapi"), "-a", f"127.0.0.1:{self.port}", *tables], "/api/schema", RUST_LOG="error")

    def ask(self, question: Question) -> Ask:
        """Values are written into the SQL: it takes no parameters."""
        return Ask("/api/sql", "POST", question.sql().encode())
