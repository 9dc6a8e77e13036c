"""Remembered plans: what a SELECT needs before it runs is worked out once per snapshot, format and parameter types.

A plan holds the parsed statement. It is no cached answer and no cached execution plan: DuckDB binds and optimises it anew,
with the values given, at every run.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

import duckdb

from .formats import Format, Plan, make_plan

_MAX_PLANS = 4096
_MAX_REMEMBERED_CHARS = 1 << 20
"""SQL kept in all. Parsed it takes some 16 bytes a character, 80 in the worst case found (`SELECT 1,1,1,…`)."""
_MAX_SQL_CHARS = 32_768


class Plans:
    """Plans by what they depend on; the least recently used are forgotten first. Any thread may ask."""

    def __init__(self) -> None:
        self._plans: OrderedDict[tuple[object, ...], Plan] = OrderedDict()
        self._chars = 0
        self._lock = threading.Lock()

    def get(
        self,
        snapshot_id: str,
        cursor: duckdb.DuckDBPyConnection,
        sql: str,
        params: Mapping[str, object],
        fmt: Format,
    ) -> Plan:
        """The plan of `sql` on the snapshot `cursor` belongs to. Raises what DuckDB raises on SQL that cannot bind."""
        types = tuple([(name, _kind(value)) for name, value in sorted(params.items())])
        key = (snapshot_id, sql, fmt, types)
        with self._lock:
            plan = self._plans.get(key)
            if plan is not None:
                self._plans.move_to_end(key)
                return plan
        plan = make_plan(cursor, sql, params, fmt)
        if len(sql) <= _MAX_SQL_CHARS:
            self._remember(key, plan)
        return plan

    def _remember(self, key: tuple[object, ...], plan: Plan) -> None:
        with self._lock:
            if key in self._plans:  # another thread was faster
                return
            self._plans[key] = plan
            self._chars += len(plan.sql)
            while len(self._plans) > _MAX_PLANS or self._chars > _MAX_REMEMBERED_CHARS:
                _, forgotten = self._plans.popitem(last=False)
                self._chars -= len(forgotten.sql)


def _kind(value: object) -> object:
    """What the type DuckDB gives a bound value depends on."""
    if isinstance(value, int) and not isinstance(value, bool):
        return "INTEGER" if -(2**31) <= value < 2**31 else "BIGINT" if value < 2**63 else "UBIGINT"
    return type(value)
