"""Panels in Grafana's classic JSON model, from the short form that dashboards/source/*.yaml uses.

An SLO number never stands in a dashboard: `limit` (upper bound) and `floor` (lower bound) are queries on the series
that slo.yaml's rules record. On a time series the bound is drawn as a dashed line, on a stat a floor stands beside the
value; a `limit` also becomes the panel's threshold through Grafana's "config from query results" transformation.
"""

from __future__ import annotations

from string import ascii_uppercase
from typing import Any

Json = dict[str, Any]

DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
LINE_REF = "SLO"  # the bound drawn as a line
LIMIT_REF = "LIMIT"  # the bound turned into a threshold, never drawn itself


def row(row_id: int, title: str, y: int) -> Json:
    """A row header; its panels follow it in the list (the row is not collapsed)."""
    grid = {"x": 0, "y": y, "w": 24, "h": 1}
    return {"id": row_id, "type": "row", "title": title, "collapsed": False, "gridPos": grid, "panels": []}


def panel(spec: Json, grid: dict[str, int], titles: dict[str, str]) -> Json:
    """One panel. Raises `KeyError` when the spec lacks a mandatory key or links to an unknown dashboard."""
    kind = spec.get("type", "timeseries")
    made: Json = {
        "id": spec["id"],
        "type": kind,
        "title": spec["title"],
        "description": " ".join(spec["description"].split()),
        "datasource": DATASOURCE,
        "gridPos": grid,
        "targets": targets(spec, kind),
        "fieldConfig": {"defaults": field_defaults(spec, kind), "overrides": overrides(spec)},
        "options": merged(merged(OPTIONS[kind], _stat_look(spec) if kind == "stat" else {}), spec.get("options", {})),
        "transformations": [*spec.get("transformations", []), *threshold_from_query(spec)],
        "links": [panel_link(uid, titles[uid]) for uid in spec.get("links", [])],
    }
    return made


def panel_link(uid: str, title: str) -> Json:
    """A link from a panel to the dashboard that explains it, keeping the time range."""
    return {"title": f"Dashboard {title}", "url": f"/d/{uid}?${{__url_time_range}}", "targetBlank": False}


def targets(spec: Json, kind: str) -> list[Json]:
    """The panel's queries A, B, ...; then the bound as a line (time series) and as a threshold (limits)."""
    made = [
        _target(ref, {"min_step": spec.get("min_step", ""), **query}, kind)
        for ref, query in zip(ascii_uppercase, spec["queries"], strict=False)
    ]
    bound = spec.get("limit") or spec.get("floor")
    if bound and (kind == "timeseries" or "floor" in spec):
        made.append(_target(LINE_REF, {"expr": bound, "legend": "objective"}, kind))
    if "limit" in spec:
        made.append(_target(LIMIT_REF, {"expr": bound, "legend": "threshold1"}, kind))
    return made


def _target(ref: str, query: Json, kind: str) -> Json:
    # A stat over a range shows its last sample, however old: what has no value now would show an hour-old one, not "idle".
    instant = query.get("instant", kind in {"table", "bargauge", "stat"})
    # Targets scraped less often than the data source's interval need a longer $__rate_interval.
    step: Json = {"interval": query["min_step"]} if query.get("min_step") else {}
    return {
        "refId": ref,
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query["expr"],
        "legendFormat": query.get("legend", "__auto"),
        "format": query.get("format", {"table": "table", "heatmap": "heatmap"}.get(kind, "time_series")),
        "instant": instant,
        "range": not instant,
        **step,
    }


def _stat_look(spec: Json) -> Json:
    """No curve behind a number that is asked once; names beside numbers wherever there can be more than one."""
    queries = spec["queries"]
    look: Json = {} if any(query.get("instant") is False for query in queries) else {"graphMode": "none"}
    if len(queries) > 1 or "floor" in spec or any("{{" in query["legend"] for query in queries):
        look["textMode"] = "value_and_name"
    return look


def threshold_from_query(spec: Json) -> list[Json]:
    """Turn the LIMIT query's value into the threshold above which the panel is red."""
    if "limit" not in spec:
        return []
    mapping = {"fieldName": "threshold1", "handlerKey": "threshold1", "reducerId": "lastNotNull"}
    return [{"id": "configFromData", "options": {"configRefId": LIMIT_REF, "mappings": [mapping]}}]


def field_defaults(spec: Json, kind: str) -> Json:
    """Unit, thresholds, value mappings and the drawing style of a panel's series."""
    neutral = "green" if "limit" in spec else "blue"
    steps = spec.get("thresholds", [[neutral, None]])
    made: Json = {
        "unit": spec["unit"],
        "color": {"mode": spec.get("color", "thresholds" if kind in THRESHOLD_COLOURED else "palette-classic")},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": colour, "value": value} for colour, value in steps],
        },
        "mappings": mappings(spec.get("mappings", {})),
        "custom": merged(CUSTOM.get(kind, {}), _drawing(spec)),
    }
    made |= {key: spec[key] for key in ("min", "max", "decimals") if key in spec}
    made["noValue"] = spec.get("no_value", "no data")
    return made


def _drawing(spec: Json) -> Json:
    style: Json = {}
    if "stack" in spec:
        style |= {"stacking": {"mode": spec["stack"], "group": "A"}, "fillOpacity": 40}
    if spec.get("log"):
        style["scaleDistribution"] = {"type": "log", "log": 10}
    if spec.get("type", "timeseries") == "timeseries":
        if "limit" in spec or "thresholds" in spec:
            style["thresholdsStyle"] = {"mode": "area"}
        if "axis_soft_min" in spec:
            style["axisSoftMin"] = spec["axis_soft_min"]
    return style


def mappings(values: dict[Any, list[str]]) -> list[Json]:
    """`{0: [text, colour]}` as Grafana's value mappings."""
    if not values:
        return []
    options = {
        str(value): {"text": text, "color": colour, "index": index}
        for index, (value, (text, colour)) in enumerate(values.items())
    }
    return [{"type": "value", "options": options}]


def overrides(spec: Json) -> list[Json]:
    """Overrides by series or column name, and the dashed look of the objective's line."""
    made = [
        {
            "matcher": {"id": "byRegexp", "options": entry["series"]},
            "properties": [{"id": key, "value": value} for key, value in entry["set"].items()],
        }
        for entry in spec.get("overrides", [])
    ]
    kind = spec.get("type", "timeseries")
    if ("limit" in spec or "floor" in spec) and kind == "timeseries":
        made.append(OBJECTIVE_LINE)
    elif "floor" in spec:
        made.append(OBJECTIVE_VALUE)
    return made


def merged(base: Json, extra: Json) -> Json:
    """`extra` laid over `base`, recursively; neither is changed."""
    made = dict(base)
    for key, value in extra.items():
        old = made.get(key)
        made[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return made


THRESHOLD_COLOURED = {"stat", "gauge", "bargauge", "table", "state-timeline"}

OBJECTIVE_VALUE: Json = {
    "matcher": {"id": "byFrameRefID", "options": LINE_REF},
    "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": "text"}}],
}

OBJECTIVE_LINE: Json = {
    "matcher": {"id": "byFrameRefID", "options": LINE_REF},
    "properties": [
        {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
        {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}},
        {"id": "custom.lineWidth", "value": 2},
        {"id": "custom.fillOpacity", "value": 0},
        {"id": "custom.stacking", "value": {"mode": "none", "group": "A"}},
    ],
}

CUSTOM: dict[str, Json] = {
    "timeseries": {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 10,
        "gradientMode": "none",
        "showPoints": "never",
        "spanNulls": False,
        "axisSoftMin": 0,
        "stacking": {"mode": "none", "group": "A"},
        "scaleDistribution": {"type": "linear"},
        "thresholdsStyle": {"mode": "off"},
    },
    "state-timeline": {"lineWidth": 0, "fillOpacity": 80, "spanNulls": False},
    "table": {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True},
    "heatmap": {"scaleDistribution": {"type": "linear"}},
}

_REDUCE: Json = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_LEGEND: Json = {
    "showLegend": True,
    "displayMode": "table",
    "placement": "bottom",
    "calcs": ["lastNotNull", "max"],
}

OPTIONS: dict[str, Json] = {
    "timeseries": {"legend": _LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}},
    "stat": {
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "reduceOptions": _REDUCE,
    },
    "bargauge": {
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
        "valueMode": "color",
        "reduceOptions": _REDUCE,
    },
    "state-timeline": {
        "mergeValues": True,
        "rowHeight": 0.8,
        "showValue": "auto",
        "legend": {"showLegend": False, "displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "single", "sort": "none"},
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        "cellValues": {"unit": "reqps"},
        "color": {
            "mode": "scheme",
            "scheme": "Oranges",
            "fill": "dark-orange",
            "scale": "exponential",
            "exponent": 0.5,
            "steps": 64,
            "reverse": False,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "showValue": "never",
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
        "yAxis": {"axisPlacement": "left", "unit": "s", "reverse": False},
    },
}
