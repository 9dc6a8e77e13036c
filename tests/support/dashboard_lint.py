"""The rules every dashboard keeps. Each takes dashboards as Grafana would read them and says in words what is wrong.

Kept apart from the tests so that the tests can also run the rules on dashboards broken on purpose.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

from tests.support.dashboards import VARIABLE, Json, panels, variables
from tests.support.promql import Selector, numbers, quantiles, selectors

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
BUILT_IN = {"__rate_interval", "__interval", "__range", "__url_time_range", "datasource"}
RATES = {"rate", "irate", "increase"}
COUNTER = re.compile(r"_(total|bucket|sum|count)$")
AGGREGATED = {"sum", "max", "min", "avg"}
# Series that Prometheus, the rules or a probe make: they belong to no job or instance that a reader would choose.
UNSCOPED = re.compile(r":|^(ALERTS|up|scrape_duration_seconds|probe_\w+|bi_loadtest_\w+)$")
SLO_SERIES = re.compile(r"^(bi:slo_target:value|slo:objective:ratio)$")
# What these measure has an objective or an alerting limit, so a panel of it must show that beside it.
RECORDED_SLI = re.compile(r"^(bi:api_(error|latency_seconds):\w+|bi:cache_hit:ratio|bi:uptime:\w+|slo:sli_error:\w+)$")
MIN_DESCRIPTION = 40
LABEL_VALUES_TYPE = 1  # Grafana's: label names 0, label values 1, metric names 2, ...
# A share with an error budget lives between the objective and 1; on an axis from 0 it is a line along the top.
LOWEST_SHARE_AXIS = 0.9
A_SPAN = re.compile(r"\b(last|past) (second|minute|hour|day|week|\w+ (seconds|minutes|hours|days))\b")
# What an alternative may stand beside: one number without labels.
ONE_NUMBER = re.compile(r"^(sum|max|min|count|abs|avg) ?\((?!.*\bby \()")
ALTERNATIVE = re.compile(r"\bor (?P<on>on\(\) )?(?P<name>label_replace|vector)\(")
TIMED_OUT = re.compile(r'unless rate\(http_requests_total\{[^}]*endpoint="/api/v1/query", status="504"\}')

Problems = Iterator[str]


def every(dashboards: list[Json]) -> Iterator[tuple[str, Json, Json]]:
    """(where, dashboard, panel) of each panel."""
    for dashboard in dashboards:
        for panel in panels(dashboard):
            yield f"{dashboard['uid']} / {panel.get('title') or panel['id']}", dashboard, panel


def targets(dashboards: list[Json]) -> Iterator[tuple[str, Json, Json]]:
    """(where, panel, target) of each query."""
    for where, _, panel in every(dashboards):
        for target in panel.get("targets", []):
            yield where, panel, target


def used_selectors(dashboards: list[Json]) -> Iterator[tuple[str, Selector]]:
    """Each series that a panel's query reads."""
    for where, _, target in targets(dashboards):
        for selector in selectors(target["expr"]):
            yield where, selector


def identity(dashboards: list[Json]) -> Problems:
    """Uids and titles are unique, panel ids within a dashboard and titles within a dashboard too."""
    for key in ("uid", "title"):
        yield from (f"two dashboards with {key} {value!r}" for value in _doubles(d[key] for d in dashboards))
    for dashboard in dashboards:
        shown = list(panels(dashboard))
        ids = [panel["id"] for panel in dashboard["panels"]]
        yield from (f"{dashboard['uid']}: two panels with id {value}" for value in _doubles(ids))
        yield from (f"{dashboard['uid']}: two panels titled {t!r}" for t in _doubles(p["title"] for p in shown))


def _doubles(values: Iterator[Any] | list[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def provisioned(dashboards: list[Json]) -> Problems:
    """Read only, refreshed, described, tagged, in the classic model."""
    for dashboard in dashboards:
        wanted = {"editable": False, "refresh": "10s", "graphTooltip": 1}
        for key, value in wanted.items():
            if dashboard.get(key) != value:
                yield f"{dashboard['uid']}: {key} is {dashboard.get(key)!r}, not {value!r}"
        for key in ("description", "tags", "time", "schemaVersion"):
            if not dashboard.get(key):
                yield f"{dashboard['uid']}: no {key}"
        if "id" in dashboard or "spec" in dashboard:
            yield f"{dashboard['uid']}: not the classic model as committed (an id or a spec)"
        marks = {mark["name"] for mark in dashboard["annotations"]["list"]}
        if not {"Alerts firing", "Snapshot swaps"} <= marks:
            yield f"{dashboard['uid']}: lacks the marks for alerts and snapshot swaps"


def explained(dashboards: list[Json]) -> Problems:
    """Each panel has a title, a description worth reading, and a unit."""
    for where, _, panel in every(dashboards):
        if not panel.get("title"):
            yield f"{where}: no title"
        if len(panel.get("description", "")) < MIN_DESCRIPTION:
            yield f"{where}: the description does not say what to read and do"
        if not panel["fieldConfig"]["defaults"].get("unit"):
            yield f"{where}: no unit"


def queried(dashboards: list[Json]) -> Problems:
    """Each panel asks something, each query is named, templated and has a legend."""
    for where, _, panel in every(dashboards):
        if not panel.get("targets"):
            yield f"{where}: no targets"
        if panel.get("datasource") != DATASOURCE:
            yield f"{where}: datasource is not ${{datasource}}"
        yield from (f"{where}: two queries {ref}" for ref in _doubles(t["refId"] for t in panel.get("targets", [])))
    for where, panel, target in targets(dashboards):
        if not target.get("expr", "").strip():
            yield f"{where}: empty query {target['refId']}"
        if target.get("datasource") != DATASOURCE:
            yield f"{where}: query {target['refId']} has a datasource of its own"
        if panel["type"] != "table" and target.get("legendFormat", "__auto") == "__auto":
            yield f"{where}: query {target['refId']} has no legend"


def rates(dashboards: list[Json]) -> Problems:
    """Counters only inside rate() or increase(), aggregated, over $__rate_interval (or $__range for one total)."""
    for where, _, target in targets(dashboards):
        for selector in selectors(target["expr"]):
            inner = selector.inside[-1] if selector.inside else ""
            if COUNTER.search(selector.metric) and inner not in RATES:
                yield f"{where}: counter {selector.metric} outside of rate() or increase()"
            if inner not in RATES:
                continue
            total = inner == "increase" and target["instant"] and selector.window == "$__range"
            if selector.window != "$__rate_interval" and not total:
                yield f"{where}: {inner}() over [{selector.window}], not [$__rate_interval]"
            if not AGGREGATED & set(selector.inside):
                yield f"{where}: {inner}({selector.metric}) is not aggregated"


def templated(dashboards: list[Json]) -> Problems:
    """Each selector follows the job and instance that the reader chose; each variable exists, is used, offers All."""
    for where, selector in used_selectors(dashboards):
        if UNSCOPED.search(selector.metric):
            continue
        for label in ("job", "instance"):
            if not re.fullmatch(rf'=~"\$(\w+_)?{label}"', selector.matchers.get(label, "")):
                yield f"{where}: {selector.metric} does not follow the {label} variable"
    for dashboard in dashboards:
        yield from _variables(dashboard)


def _variables(dashboard: Json) -> Problems:
    uid = dashboard["uid"]
    if dashboard["templating"]["list"][0]["name"] != "datasource":
        yield f"{uid}: the first variable is not the data source"
    defined = {entry["name"] for entry in variables(dashboard)}
    exprs = [target["expr"] for panel in panels(dashboard) for target in panel.get("targets", [])]
    texts = exprs + [entry["query"]["query"] for entry in variables(dashboard)]
    used = {found[1] or found[2] for text in texts for found in VARIABLE.finditer(text)}
    yield from (f"{uid}: ${name} is not defined" for name in sorted(used - defined - BUILT_IN))
    yield from (f"{uid}: ${name} is not used" for name in sorted(defined - used))
    for entry in variables(dashboard):
        if entry["query"]["qryType"] != LABEL_VALUES_TYPE:
            yield f"{uid}: ${entry['name']} is not asked as label values"
        if not (entry["multi"] and entry["includeAll"] and entry["allValue"] and entry["datasource"] == DATASOURCE):
            yield f"{uid}: ${entry['name']} is not multi-valued with All on ${{datasource}}"


def layout(dashboards: list[Json]) -> Problems:
    """Panels lie within the grid's 24 columns and do not overlap."""
    for dashboard in dashboards:
        boxes = [(panel["title"], panel["gridPos"]) for panel in dashboard["panels"]]
        for title, box in boxes:
            if box["x"] < 0 or box["x"] + box["w"] > 24 or min(box["w"], box["h"]) < 1:
                yield f"{dashboard['uid']} / {title}: outside of the grid"
        for (one, a), (other, b) in combinations(boxes, 2):
            across = a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"]
            if across and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]:
                yield f"{dashboard['uid']}: {one!r} and {other!r} overlap"


def links(dashboards: list[Json]) -> Problems:
    """Links lead to dashboards (and panels) that exist; every dashboard leads to the others."""
    known = {dashboard["uid"]: {panel["id"] for panel in dashboard["panels"]} for dashboard in dashboards}
    tags = {tag for dashboard in dashboards for tag in dashboard["tags"]}
    for dashboard in dashboards:
        own = dashboard["links"]
        if not any(link["type"] == "dashboards" and set(link["tags"]) <= tags for link in own):
            yield f"{dashboard['uid']}: no link to the other dashboards"
        inside = [link for panel in panels(dashboard) for link in panel.get("links", [])]
        for link in [*own, *inside]:
            if link.get("type") != "dashboards":
                yield from (f"{dashboard['uid']}: {problem}" for problem in broken_link(link["url"], known))


def broken_link(url: str, known: dict[str, set[int]]) -> list[str]:
    """Why `/d/uid?viewPanel=panel-N` leads nowhere; `known` holds the panel ids of each dashboard."""
    found = re.match(r"/d/([\w-]+)", url)
    if not found or found[1] not in known:
        return [f"link to {url}: no such dashboard"]
    panel = re.search(r"viewPanel=(?:panel-)?(\w+)", url)
    if panel and not (panel[1].isdigit() and int(panel[1]) in known[found[1]]):
        return [f"link to {url}: no such panel"]
    return []


def measures_slo(panel: Json) -> bool:
    """Whether the panel shows something that has an objective in slo.yaml: user latency, errors, cache hits, uptime."""
    if panel["type"] == "table" or panel["fieldConfig"]["defaults"].get("unit") not in {"s", "percentunit"}:
        return False
    for target in panel.get("targets", []):
        for selector in selectors(target["expr"]):
            quantile = selector.metric == "http_request_duration_seconds_bucket" and quantiles(target["expr"])
            errors = selector.metric == "http_requests_total" and "5" in selector.matchers.get("status", "")
            hits = selector.metric == "bi_cache_requests_total" and "hit" in selector.matchers.get("result", "")
            if quantile or errors or hits or RECORDED_SLI.match(selector.metric):
                return True
    return False


def objectives(dashboards: list[Json]) -> Problems:
    """Panels of what has an objective show it, by query; no such panel states a number of its own."""
    for where, _, panel in every(dashboards):
        asked = [s.metric for t in panel.get("targets", []) for s in selectors(t["expr"])]
        bounded = any(SLO_SERIES.match(metric) for metric in asked)
        if measures_slo(panel) and not bounded:
            yield f"{where}: shows what has an objective, without the objective"
        steps = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        if (measures_slo(panel) or bounded) and not set(steps) <= {None, 0, 1}:
            yield f"{where}: a threshold as a number; take it from slo.yaml's series"
        if any(target["refId"] == "LIMIT" for target in panel.get("targets", [])) != _has_threshold_query(panel):
            yield f"{where}: the LIMIT query and the transformation that makes it a threshold do not go together"


def _has_threshold_query(panel: Json) -> bool:
    """Whether the LIMIT query's value becomes the panel's threshold."""
    steps = [step["options"] for step in panel.get("transformations", []) if step["id"] == "configFromData"]
    keys = {entry["handlerKey"] for step in steps if step["configRefId"] == "LIMIT" for entry in step["mappings"]}
    return keys == {"threshold1"}


def literals(dashboards: list[Json]) -> Problems:
    """Queries hold no number but 0 and 1, and no bucket bound: those would be SLO numbers in a second place."""
    for where, _, target in targets(dashboards):
        for number in numbers(target["expr"]):
            if number not in {"0", "1"}:
                yield f"{where}: the number {number} in a query"
    for where, selector in used_selectors(dashboards):
        if "le" in selector.matchers:
            yield f"{where}: a bucket chosen by its bound, {selector.matchers['le']}"


def stats(dashboards: list[Json]) -> Problems:
    """A stat shows what is now, never the last sample of the time range, and says which number is which."""
    for where, _, panel in every(dashboards):
        if panel["type"] != "stat":
            continue
        shown = [target for target in panel["targets"] if target["refId"] != "LIMIT"]
        for target in shown:
            if not target["instant"] and not re.search(r" or vector\(\d\)$", target["expr"]):
                yield f"{where}: a stat over a range of what may have no value now ({target['refId']})"
        several = len(shown) > 1 or any("{{" in target["legendFormat"] for target in shown)
        if several and panel["options"]["textMode"] != "value_and_name":
            yield f"{where}: several numbers, or one of many, without their names"
        if panel["options"]["graphMode"] != "none" and any(target["instant"] for target in shown):
            yield f"{where}: a curve behind a number that is asked once"


def alternatives(dashboards: list[Json]) -> Problems:
    """What stands in for nothing goes when there is something: `or` keeps every series whose labels differ."""
    for where, _, target in targets(dashboards):
        expr = target["expr"]
        for found in ALTERNATIVE.finditer(expr):
            if not found["on"] and (found["name"] == "label_replace" or not ONE_NUMBER.match(_left_of(expr, found))):
                yield f"{where}: `or {found['name']}(...)` stays beside what it stands in for; say `or on()`"


def _left_of(expr: str, found: re.Match[str]) -> str:
    """What stands before `or`, from the parenthesis that both are in."""
    depth = 0
    for at in range(found.start() - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(expr[at], 0)
        if depth < 0:
            return expr[at + 1 : found.start()].strip()
    return expr[: found.start()].strip()


def drawing(dashboards: list[Json]) -> Problems:
    """Thresholds of a curve are drawn, shares of good requests fill their axis, a heatmap counts nothing twice."""
    for where, _, panel in every(dashboards):
        custom, asked = panel["fieldConfig"]["defaults"]["custom"], [t["expr"] for t in panel["targets"]]
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        if panel["type"] == "timeseries":
            if len(steps) > 1 and custom["thresholdsStyle"]["mode"] == "off":
                yield f"{where}: thresholds that are not drawn"
            share = any("slo:objective:ratio" in expr and "/" not in expr for expr in asked)
            if share and custom["axisSoftMin"] < LOWEST_SHARE_AXIS:
                yield f"{where}: a share near 1 on an axis from {custom['axisSoftMin']}"
        if panel["type"] == "heatmap" and any("increase(" in expr for expr in asked):
            yield f"{where}: increase() in a heatmap counts each request in every step that its window covers"


def spans(dashboards: list[Json]) -> Problems:
    """No text names a span of time where the query looks at one interval of the graph."""
    for where, _, panel in every(dashboards):
        said = A_SPAN.search(panel.get("description", ""))
        if said and any("$__rate_interval" in target["expr"] for target in panel["targets"]):
            yield f"{where}: says {said[0]!r}, and looks at one interval"


def failures(dashboards: list[Json]) -> Problems:
    """A share of failures is that of the alert: an ad-hoc query that ran out of its time is not one."""
    for where, panel, target in targets(dashboards):
        failed = any(
            s.metric == "http_requests_total" and s.matchers.get("status") == '=~"5.."'
            for s in selectors(target["expr"])
        )
        if (
            failed
            and panel["fieldConfig"]["defaults"]["unit"] == "percentunit"
            and not TIMED_OUT.search(target["expr"])
        ):
            yield f"{where}: counts time-outs of ad-hoc queries, which the alert does not"


RULES: list[Callable[[list[Json]], Problems]] = [
    identity,
    provisioned,
    explained,
    queried,
    rates,
    templated,
    layout,
    links,
    objectives,
    literals,
    stats,
    alternatives,
    drawing,
    spans,
    failures,
]
