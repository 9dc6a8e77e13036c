"""What the peers are given: the models that the service's own queries read, so that only the serving differs.

Without them a peer would compute from 1.5 million raw sales lines what the service finds ready in its snapshot. They are
exported once for each snapshot and kept in `.bi/bench`.
"""

from __future__ import annotations

import datetime
import decimal
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import duckdb

TABLES = (
    "baskets",
    "basket_departments",
    "product_days",
    "product_months",
    "products",
    "supplier_days",
    "suppliers_profile",
    "week_totals",
    "calendar_weeks",
)
# As Datasette's documentation advises: an index for what a query filters by; here with the columns it reads, too.
_SUMS = "product_id, units, sales_usd"
_BASKET = "store_id, household_id, line_count, units, sales_usd, list_usd"
_SUPPLIER = "manufacturer_id, sales_usd"
INDEXES = {
    "baskets": [f"business_date, {_BASKET}"],
    "basket_departments": [f"department, business_date, {_BASKET}"],
    "product_days": [f"department, business_date, {_SUMS}", f"business_date, {_SUMS}"],
    "product_months": [f"department, month_start, {_SUMS}", f"month_start, {_SUMS}"],
    "products": ["product_id"],
    "supplier_days": [f"department, business_date, {_SUPPLIER}", f"business_date, {_SUPPLIER}"],
    "suppliers_profile": ["manufacturer_id, department"],
    "week_totals": ["store_id, department, week_start"],
    "calendar_weeks": ["week_start"],
}
_SQLITE_TYPES = {"VARCHAR": "text", "DATE": "text", "DOUBLE": "real", "DECIMAL(12,2)": "real"}
_BATCH_ROWS = 50_000


@dataclass(frozen=True)
class Given:
    """The same tables in each form: Parquet files, a SQLite file, a DuckDB file."""

    folder: Path

    def parquet(self, table: str) -> Path:
        """A table's Parquet file."""
        return self.folder / f"{table}.parquet"

    @property
    def sqlite(self) -> Path:
        """All tables, indexed."""
        return self.folder / "bench.db"

    @property
    def duckdb(self) -> Path:
        """All tables and nothing else, in the order of the snapshot."""
        return self.folder / "bench.duckdb"


def export(snapshot: Path, root: Path) -> Given:
    """The tables of a snapshot for the peers; from the last export when it was of the same snapshot."""
    given = Given(root / snapshot.stem)
    if (given.folder / "complete").exists():
        return given
    shutil.rmtree(root, ignore_errors=True)
    given.folder.mkdir(parents=True)
    with duckdb.connect(str(snapshot), read_only=True) as source:
        for table in TABLES:
            source.execute(f"copy {table} to '{given.parquet(table)}' (format parquet, compression zstd)")
        with sqlite3.connect(given.sqlite) as target:
            for table in TABLES:
                _to_sqlite(source, target, table)
            target.execute("analyze")
        target.close()
    with duckdb.connect(str(given.duckdb)) as copy:
        for table in TABLES:
            copy.execute(f"create table {table} as from '{given.parquet(table)}'")
    (given.folder / "complete").touch()
    return given


def _to_sqlite(source: duckdb.DuckDBPyConnection, target: sqlite3.Connection, table: str) -> None:
    columns = [(name, kind) for name, kind, *_ in source.execute(f"describe {table}").fetchall()]
    declared = ", ".join(f"{name} {_SQLITE_TYPES.get(kind, 'integer')}" for name, kind in columns)
    target.execute(f"create table {table} ({declared})")
    places = ", ".join("?" * len(columns))
    rows = source.execute(f"from {table}")
    while batch := rows.fetchmany(_BATCH_ROWS):
        target.executemany(f"insert into {table} values ({places})", (tuple(map(_plain, row)) for row in batch))
    for number, index in enumerate(INDEXES[table]):
        target.execute(f"create index {table}_{number} on {table} ({index})")


def _plain(value: object) -> object:
    if isinstance(value, decimal.Decimal):
        return float(value)
    return value.isoformat() if isinstance(value, datetime.date) else value
