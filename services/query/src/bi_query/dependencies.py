"""Which model reads what, on DuckDB's own parse, and the order that follows from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import duckdb
import orjson

from .catalogue import Model
from .errors import PublishError


def order_models(models: Mapping[str, Model], tables: set[str]) -> list[tuple[Model, frozenset[str]]]:
    """Models with the models they read, each after those. Names are compared as DuckDB does, without case.

    Raises `PublishError` (with file and line) on an unknown table, a model named like a data table, or a cycle.
    """
    known = {name.lower() for name in tables} | set(models)
    needs: dict[str, set[str]] = {}
    with duckdb.connect() as parser:
        for name, model in models.items():
            if name in {table.lower() for table in tables}:
                raise PublishError(f"{model.path}:1: model '{name}' has the name of a data table; rename the model")
            read = _tables_read(parser, model, known)
            for table, line in read.items():
                if table not in known:
                    raise PublishError(
                        f"{model.path}:{line}: model '{name}' reads '{table}', which is neither a table of the data "
                        f"folder ({', '.join(sorted(tables))}) nor a model"
                    )
            needs[name] = {table for table in read if table in models}
    ordered: list[tuple[Model, frozenset[str]]] = []
    left = dict(needs)
    while left:
        ready = sorted(name for name, wanted in left.items() if not wanted & set(left))
        if not ready:
            stuck = _in_circle(left)
            places = ", ".join(str(models[name].path) for name in stuck)
            raise PublishError(f"models read each other in a circle: {' -> '.join([*stuck, stuck[0]])} ({places})")
        for name in ready:
            ordered.append((models[name], frozenset(needs[name])))
            del left[name]
    return ordered


def _in_circle(needs: Mapping[str, set[str]]) -> list[str]:
    """One circle, in reading order; every model of `needs` reads another of them."""
    path = [min(needs)]
    while True:
        following = min(needs[path[-1]] & set(needs))
        if following in path:
            return path[path.index(following) :]
        path.append(following)


def _tables_read(parser: duckdb.DuckDBPyConnection, model: Model, known: set[str]) -> dict[str, int]:
    """Lower-case names of the tables a model reads, with the line each stands on."""
    text = parser.execute("SELECT json_serialize_sql($1::VARCHAR)", [model.sql]).fetchall()[0][0]
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise PublishError(f"{model.path}:{model.sql_line}: model '{model.name}' is nested too deeply") from None
    if document[
        "error"
    ]:  # PIVOT without IN is several statements to DuckDB and has no tree: any known word may be read
        return {word.lower(): model.sql_line for word in re.findall(r"\w+", model.sql) if word.lower() in known}
    tables: dict[str, int] = {}
    ctes: set[str] = set()
    stack: list[Any] = [document]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            stack.extend(node.values())
            ctes |= {str(entry["key"]).lower() for entry in (node.get("cte_map") or {}).get("map", ())}
            if node.get("type") == "BASE_TABLE" and node.get("schema_name") in ("", "main"):
                tables.setdefault(str(node["table_name"]).lower(), _line(model, node["query_location"]))
    # A CTE named like a table counts as that table (too much is harmless, too little is not), but not as the model itself.
    mine = ctes - (known - {model.name})
    return {name: line for name, line in tables.items() if name not in mine}


def _line(model: Model, offset_bytes: int) -> int:
    data = model.sql.encode()
    return model.sql_line + (data[:offset_bytes].count(b"\n") if offset_bytes < len(data) else 0)
