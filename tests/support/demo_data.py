"""What the demo's answer tests share: the raw sales lines with their local day, and small helpers.

`Demo.rows(query, **parameters)` asks the service; `Demo.raw` is a DuckDB connection with views over the raw Parquet. Both
come from the fixture `demo`, of session scope.
"""

from __future__ import annotations

from typing import Any, Protocol

import duckdb

Row = dict[str, Any]
YEAR = {"from_date": "2017-01-01", "to_date": "2017-12-31"}
SPRING = {"from_date": "2017-03-08", "to_date": "2017-05-17"}
CENT = 0.0101  # what rounding in an answer may take away


class Demo(Protocol):
    """What tests/conftest.py provides."""

    raw: duckdb.DuckDBPyConnection

    def rows(self, query: str, /, **parameters: Any) -> list[Row]:
        """A named query's rows, as the service answers them: dates are ISO text."""


def with_local_days(demo: Demo) -> duckdb.DuckDBPyConnection:
    """`demo.raw` with a table `lines`: sales lines with department and local day, by DuckDB's time zone database."""
    demo.raw.execute(
        """
        create temp table if not exists lines as
        select
            t.*,
            coalesce(p.department, 'UNKNOWN') as department,
            p.product_category as category,
            timezone('America/New_York', timezone('UTC', t.transaction_timestamp)) as local_time,
            timezone('America/New_York', timezone('UTC', t.transaction_timestamp))::date as day
        from transactions t left join products p on p.product_id = t.product_id
        """
    )
    return demo.raw


def fetch(connection: duckdb.DuckDBPyConnection, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """All rows of a statement."""
    return connection.execute(sql, list(values)).fetchall()


def value(connection: duckdb.DuckDBPyConnection, sql: str, *values: Any) -> Any:
    """The only value of a statement."""
    [[result]] = fetch(connection, sql, *values)
    return result


def close(left: float, right: float) -> bool:
    """Equal up to a rounded cent."""
    return abs(left - right) <= CENT
