"""Read the committed Grafana dashboards: panels, and every query as Prometheus would be asked.

Used by the config tests (lint) and by the stack tests, which run each of `iter_queries` against a live Prometheus.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = ROOT / "dashboards"

# `label_values(selector, label)`: the only form of variable query that the dashboards use.
LABEL_VALUES = re.compile(r"^label_values\((?P<selector>.+),\s*(?P<label>\w+)\)$")
VARIABLE = re.compile(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)")


class Query(NamedTuple):
    """One query, ready to send: no Grafana variable is left in `expr`."""

    dashboard: str  # uid
    panel: str  # title of the panel, or "variable NAME"
    expr: str


def load_all(path: Path = DASHBOARDS) -> dict[Path, Json]:
    """The dashboards under `path` (a folder, or one JSON file), by file."""
    files = [path] if path.is_file() else sorted(path.rglob("*.json"))
    return {file: json.loads(file.read_text(encoding="utf-8")) for file in files}


def panels(dashboard: Json) -> Iterator[Json]:
    """The panels that show something: row headers are left out, the panels of collapsed rows are not."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def variables(dashboard: Json) -> list[Json]:
    """The query variables (the data source variable asks nothing)."""
    return [entry for entry in dashboard["templating"]["list"] if entry["type"] == "query"]


def variable_expr(definition: str) -> str:
    """The PromQL that returns a variable's values as label sets. Raises `ValueError` on another form of query."""
    found = LABEL_VALUES.match(definition)
    if not found:
        raise ValueError(f"not label_values(selector, label): {definition}")
    return f"group by ({found['label']}) ({found['selector']})"


def substitutes(dashboard: Json, rate_interval: str, interval: str, range_: str) -> dict[str, str]:
    """What each Grafana variable stands for when every multi-valued variable is set to All."""
    chosen = {entry["name"]: entry.get("allValue") or ".+" for entry in variables(dashboard)}
    built_in = {"__rate_interval": rate_interval, "__interval": interval, "__range": range_}
    return {**chosen, **built_in}


def substitute(expr: str, values: dict[str, str]) -> str:
    """`expr` with every variable replaced. Raises `KeyError` on a variable that does not exist."""
    return VARIABLE.sub(lambda found: values[found[1] or found[2]], expr)


def iter_queries(
    path: Path = DASHBOARDS, *, rate_interval: str = "1m", interval: str = "15s", range_: str = "1h"
) -> Iterator[Query]:
    """Every panel's and every variable's query of the dashboards under `path`."""
    for dashboard in load_all(path).values():
        values = substitutes(dashboard, rate_interval, interval, range_)
        for entry in variables(dashboard):
            expr = variable_expr(entry["query"]["query"])
            yield Query(dashboard["uid"], f"variable {entry['name']}", substitute(expr, values))
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield Query(dashboard["uid"], panel["title"], substitute(target["expr"], values))
