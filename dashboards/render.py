"""Render the dashboards' sources (YAML) into the classic JSON that Grafana provisions.

    python dashboards/render.py            write dashboards/<folder>/<name>.json
    python dashboards/render.py --check    exit 1 when a committed JSON differs from its source

A source holds what differs between panels: title, description, unit, queries. What must be the same everywhere
(templated data source, refresh, read only, annotations, links, the layout grid) is written once, here and in
`panels.py`. The JSON is committed, so Grafana and its users need no build step.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # run as a script, imported by tests: `panels` lies beside this file in both cases

from panels import DATASOURCE, Json, panel, row  # noqa: E402

GRID_COLUMNS = 24
TAG = "bi-solution"

# Matchers that would otherwise be repeated in every query: `metric{@svc, ...}` in the sources.
SELECTORS = {
    "@svc": 'job=~"$job", instance=~"$instance"',
    "@redis": 'job=~"$redis_job", instance=~"$redis_instance"',
    "@node": 'job=~"$node_job", instance=~"$node_instance"',
    "@slo": 'sloth_slo=~"$slo"',
}


# `@target.NAME` is the series that slo.yaml's number NAME is recorded as (alerts/rules/slo.rules.yaml).
TARGET = re.compile(r"@target\.(\w+)")


def expand(expr: str) -> str:
    """Replace the sources' `@name` shorthands and fold the expression on one line."""
    expr = TARGET.sub(r'bi:slo_target:value{target="\1"}', expr)
    for name, matchers in SELECTORS.items():
        expr = expr.replace(name, matchers)
    return " ".join(expr.split())


def load(path: Path) -> Json:
    """Read one source, with every `expr` expanded. Raises `yaml.YAMLError` on broken YAML."""
    source: Json = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {**source, "rows": [_expand_row(entry) for entry in source["rows"]]}


def _expand_row(entry: Json) -> Json:
    return {**entry, "panels": [_expand_panel(spec) for spec in entry["panels"]]}


def _expand_panel(spec: Json) -> Json:
    queries = [{**query, "expr": expand(query["expr"])} for query in spec["queries"]]
    bounds: Json = {key: expand(spec[key]) for key in ("limit", "floor") if key in spec}
    return {**spec, **bounds, "queries": queries}


def place(rows: list[Json], titles: dict[str, str]) -> list[Json]:
    """Lay panels out left to right, wrapping at the grid's 24 columns; a row header takes a line of its own."""
    placed: list[Json] = []
    y = 0
    for number, entry in enumerate(rows, start=1):
        placed.append(row(1000 + number, entry["title"], y))
        x, y, height = 0, y + 1, 0
        for spec in entry["panels"]:
            width, tall = spec["size"]
            if x + width > GRID_COLUMNS:
                x, y, height = 0, y + height, 0
            placed.append(panel(spec, {"x": x, "y": y, "w": width, "h": tall}, titles))
            x, height = x + width, max(height, tall)
        y += height
    return placed


def variables(source: Json) -> list[Json]:
    """The data source variable, then the source's own: each `{name, label, query, all}`, multi-valued with All."""
    first = {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "regex": "",
        "refresh": 1,
        "hide": 0,
        "multi": False,
        "includeAll": False,
        "options": [],
        "current": {"selected": True, "text": "Prometheus", "value": "prometheus"},
    }
    return [first, *(_query_variable(spec) for spec in source["variables"])]


def _query_variable(spec: Json) -> Json:
    query = expand(spec["query"])
    return {
        "name": spec["name"],
        "label": spec["label"],
        "description": spec["description"],
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        # qryType 1: label values, as Grafana's own editor would write `label_values(metric, label)`.
        "query": {"query": query, "refId": "StandardVariableQuery", "qryType": 1},
        "regex": "",
        "sort": 1,
        "refresh": 2,
        "hide": 0,
        "multi": True,
        "includeAll": True,
        "allValue": spec.get("all", ".+"),
        "options": [],
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def event_marks() -> Json:
    """Alerts that fire and snapshot swaps, on every dashboard: they explain most steps in a curve."""
    firing = 'ALERTS{alertstate="firing", alertname!="Watchdog"}'
    swaps = "sum by (instance) (increase(bi_snapshot_swaps_total[$__rate_interval])) > 0"
    return {
        "list": [
            _annotation("Alerts firing", "red", firing, "{{alertname}}", "{{severity}}"),
            _annotation("Snapshot swaps", "blue", swaps, "Snapshot swapped", "{{instance}}"),
        ]
    }


def _annotation(name: str, colour: str, expr: str, title: str, text: str) -> Json:
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "expr": expr,
        "titleFormat": title,
        "textFormat": text,
        "step": "15s",
        "target": {"refId": "Anno", "expr": expr, "interval": "15s", "legendFormat": "__auto"},
    }


def dashboard(source: Json, titles: dict[str, str]) -> Json:
    """One dashboard in Grafana's classic JSON model; `titles` maps every dashboard's uid to its title."""
    return {
        "uid": source["uid"],
        "title": source["title"],
        "description": source["description"],
        "tags": [TAG],
        "schemaVersion": 41,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "fiscalYearStartMonth": 0,
        "weekStart": "",
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": source.get("from", "now-1h"), "to": "now"},
        "timepicker": {"refresh_intervals": ["5s", "10s", "30s", "1m", "5m", "15m"]},
        "templating": {"list": variables(source)},
        "annotations": event_marks(),
        "links": [_dashboards_link(), *source.get("links", [])],
        "panels": place(source["rows"], titles),
    }


def _dashboards_link() -> Json:
    return {
        "title": "BI Solution",
        "type": "dashboards",
        "tags": [TAG],
        "asDropdown": False,
        "icon": "external link",
        "includeVars": False,
        "keepTime": True,
        "targetBlank": False,
        "tooltip": "The other dashboards, with the same time range",
        "url": "",
    }


def render() -> dict[Path, str]:
    """Every dashboard as `{path of its JSON file: text}`."""
    sources = {path.stem: load(path) for path in sorted((HERE / "source").glob("*.yaml"))}
    titles = {source["uid"]: source["title"] for source in sources.values()}
    return {
        HERE / source["folder"] / f"{name}.json": _text(dashboard(source, titles)) for name, source in sources.items()
    }


def _text(document: Json) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def drifted() -> list[Path]:
    """JSON files that are missing, differ from their source, or have none."""
    wanted = render()
    changed = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    return sorted(changed + [path for path in HERE.glob("*/*.json") if path not in wanted])


def main() -> int:
    """Render, or with `--check` compare; returns the exit code."""
    parser = argparse.ArgumentParser(description="Render dashboards/source/*.yaml into Grafana's JSON.")
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 when a committed file differs")
    if parser.parse_args().check:
        stale = drifted()
        for path in stale:
            sys.stdout.write(
                f"{path.relative_to(HERE.parent)}: not what its source renders to; run dashboards/render.py\n"
            )
        return 1 if stale else 0
    for path, text in render().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path.relative_to(HERE.parent)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
