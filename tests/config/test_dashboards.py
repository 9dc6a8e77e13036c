"""The dashboards that Grafana provisions: their rules, their queries, and that nothing they name is missing.

Whether the queries also return data is the stack tests' business; they run `iter_queries` against a live Prometheus.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "services/query/src"):  # so that this file runs by itself as well
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

from bi_query.metrics import metric_names  # noqa: E402

from tests.support import dashboard_lint as lint  # noqa: E402
from tests.support.dashboards import DASHBOARDS, Json, iter_queries, load_all, panels, substitute, variables  # noqa: E402
from tests.support.promql import parse_errors, selectors  # noqa: E402

RULE_FILES = ROOT / "alerts/rules"
PROVISIONING = ROOT / "infra/grafana/provisioning"
UIDS = {"bi-service", "bi-cache", "bi-engine", "bi-redis", "bi-loadtest", "bi-slo"}
# Keys of slo.yaml that hold an objective, by the unit that text would give the number.
OBJECTIVE_UNITS = {
    "percent": r" ?%",
    "seconds": r" ?(s|seconds)\b",
    "hours": r" ?(h|hours)\b",
    "second": r" ?(req/s|requests (per|a) second)",
}


def exporter_metrics() -> dict[str, list[str]]:
    lists: dict[str, list[str]] = read_yaml(Path(__file__).with_name("exporter_metrics.yaml"))
    return lists


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules() -> Iterator[Json]:
    for path in sorted(RULE_FILES.glob("*.yaml")):
        for group in read_yaml(path)["groups"]:
            yield from group["rules"]


def named_metrics(dashboards: list[Json]) -> Iterator[tuple[str, str]]:
    """(where, metric) of every series named in a panel, a variable or an annotation."""
    for where, selector in lint.used_selectors(dashboards):
        yield where, selector.metric
    for dashboard in dashboards:
        for entry in variables(dashboard):
            inner = entry["query"]["query"].removeprefix("label_values(").rpartition(",")[0]
            yield from ((f"{dashboard['uid']} / ${entry['name']}", s.metric) for s in selectors(inner))
        for mark in dashboard["annotations"]["list"]:
            yield from ((f"{dashboard['uid']} / {mark['name']}", s.metric) for s in selectors(mark["expr"]))


@pytest.fixture(scope="module")
def dashboards() -> list[Json]:
    return list(load_all().values())


@pytest.fixture(scope="module")
def renderer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboards_render", DASHBOARDS / "render.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_six_dashboards_are_there(dashboards: list[Json]) -> None:
    assert {dashboard["uid"] for dashboard in dashboards} == UIDS


def test_committed_dashboards_are_what_their_sources_render_to(renderer: ModuleType) -> None:
    assert renderer.drifted() == [], "run: python dashboards/render.py"


@pytest.mark.parametrize("rule", lint.RULES, ids=lambda rule: rule.__name__)
def test_dashboards_keep_the_rule(rule: Callable[[list[Json]], Iterator[str]], dashboards: list[Json]) -> None:
    assert list(rule(dashboards)) == []


def test_every_query_parses(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        reason = "promtool is not installed (Debian package: prometheus)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    exprs = [query.expr for query in iter_queries()]
    marks = [mark["expr"] for d in load_all().values() for mark in d["annotations"]["list"]]
    assert len(exprs) > 100
    assert parse_errors([*exprs, *(substitute(mark, {"__rate_interval": "1m"}) for mark in marks)], tmp_path) == []


def test_a_query_that_does_not_parse_is_found(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian package: prometheus)")
    assert "parse error" in str(parse_errors(["up", "sum(rate(up[1m])"], tmp_path))


def test_every_metric_named_is_exported_by_somebody(dashboards: list[Json]) -> None:
    others = {name for names in exporter_metrics().values() for name in names}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = metric_names() | others | recorded
    assert [f"{where}: {metric}" for where, metric in named_metrics(dashboards) if metric not in known] == []


def test_the_exporters_list_names_nothing_unused(dashboards: list[Json]) -> None:
    used = {metric for _, metric in named_metrics(dashboards)}
    assert {name for names in exporter_metrics().values() for name in names} - used == set()


def test_uptime_seen_from_outside_is_on_the_slo_dashboard(dashboards: list[Json]) -> None:
    slo = [dashboard for dashboard in dashboards if dashboard["uid"] == "bi-slo"]
    shown = {selector.metric for _, selector in lint.used_selectors(slo)}
    assert {"bi:uptime:ratio_1d", "bi:uptime:ratio_30d", "bi:uptime_error_budget_remaining:ratio"} <= shown


def test_every_objective_named_is_recorded_from_slo_yaml(dashboards: list[Json]) -> None:
    recorded = {rule["labels"]["target"] for rule in rules() if rule.get("record") == "bi:slo_target:value"}
    asked = [s.matchers["target"] for _, s in lint.used_selectors(dashboards) if s.metric == "bi:slo_target:value"]
    assert asked
    assert {target.removeprefix('="').removesuffix('"') for target in asked} <= recorded


def objective_phrases(node: Any, key: str = "") -> Iterator[str]:
    """Regular expressions of how a text would state slo.yaml's numbers."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from objective_phrases(value, name)
    elif isinstance(node, int | float):
        unit = OBJECTIVE_UNITS.get(key.rpartition("_")[2], r" users" if key == "users" else None)
        if unit:
            yield rf"(?<![\d.]){node:g}{unit}"


def texts(dashboard: Json) -> Iterator[str]:
    yield from (dashboard["title"], dashboard["description"])
    for panel in panels(dashboard):
        yield from (panel["title"], panel["description"])


def test_no_text_states_an_objective(dashboards: list[Json]) -> None:
    slo = read_yaml(ROOT / "slo.yaml")
    sections = {key: slo[key] for key in ("users", "throughput", "availability", "latency", "cache", "data")}
    phrases = list(objective_phrases(sections))
    assert len(phrases) >= 8
    assert [t for dashboard in dashboards for t in texts(dashboard) if any(re.search(p, t) for p in phrases)] == []


def test_alerts_link_to_panels_that_exist(dashboards: list[Json]) -> None:
    known = {dashboard["uid"]: {panel["id"] for panel in dashboard["panels"]} for dashboard in dashboards}
    urls = [rule["annotations"]["dashboard_url"] for rule in rules() if "dashboard_url" in rule.get("annotations", {})]
    assert urls
    assert [problem for url in urls for problem in lint.broken_link(url[url.index("/d/") :], known)] == []


def test_datasources_are_provisioned_as_the_dashboards_and_the_scrapes_expect() -> None:
    provisioned = read_yaml(PROVISIONING / "datasources/datasources.yaml")
    sources = {source["uid"]: source for source in provisioned["datasources"]}
    scrape_interval = read_yaml(ROOT / "infra/prometheus/prometheus.yaml")["global"]["scrape_interval"]
    assert provisioned["prune"] is True
    assert set(sources) == {"prometheus", "alertmanager"}
    assert not any(source["editable"] for source in sources.values())
    assert sources["prometheus"]["url"] == "http://prometheus:9090"
    assert sources["prometheus"]["jsonData"]["httpMethod"] == "POST"
    assert sources["prometheus"]["jsonData"]["timeInterval"] == scrape_interval
    assert sources["alertmanager"]["jsonData"]["implementation"] == "prometheus"


def test_dashboards_are_provisioned_read_only_in_folders_of_the_file_structure() -> None:
    (provider,) = read_yaml(PROVISIONING / "dashboards/dashboards.yaml")["providers"]
    assert "folder" not in provider
    assert provider["disableDeletion"] is True
    assert provider["allowUiUpdates"] is False
    assert provider["options"]["foldersFromFilesStructure"] is True
    mounts = read_yaml(ROOT / "compose.yaml")["services"]["grafana"]["volumes"]
    assert f"./dashboards:{provider['options']['path']}:ro" in mounts


def grafana_settings() -> Json:
    return dict_of(read_yaml(ROOT / "compose.yaml")["services"]["grafana"]["environment"])


def test_grafana_finds_every_folder_that_it_looks_for_at_its_start() -> None:
    # Whether something is in them or not: a missing one is an error in its log.
    for name in ("alerting", "dashboards", "datasources", "plugins"):
        assert (PROVISIONING / name).is_dir() and any((PROVISIONING / name).iterdir()), name


def test_grafanas_first_page_is_a_dashboard_that_is_mounted() -> None:
    (provider,) = read_yaml(PROVISIONING / "dashboards/dashboards.yaml")["providers"]
    shown = grafana_settings()["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    path = DASHBOARDS / Path(shown).relative_to(provider["options"]["path"])
    assert load_all(path)[path]["uid"] == "bi-service"


def test_grafana_runs_no_data_source_but_those_that_are_provisioned() -> None:
    off = set(grafana_settings()["GF_PLUGINS_DISABLE_PLUGINS"].split(","))
    used = {source["type"] for source in read_yaml(PROVISIONING / "datasources/datasources.yaml")["datasources"]}
    assert {"loki", "tempo", "elasticsearch", "grafana-postgresql-datasource"} <= off
    assert off & used == set() and all(re.fullmatch(r"[a-z-]+", name) for name in off)


def test_grafana_asks_nobody_outside() -> None:
    wanted = {
        "GF_NEWS_NEWS_FEED_ENABLED": "false",
        "GF_PLUGINS_PREINSTALL_DISABLED": "true",
        "GF_PLUGINS_PUBLIC_KEY_RETRIEVAL_DISABLED": "true",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
        "GF_SECURITY_DISABLE_GRAVATAR": "true",
        "GF_SNAPSHOTS_EXTERNAL_ENABLED": "false",
    }
    assert wanted.items() <= grafana_settings().items()


def test_a_load_tests_verdict_replaces_the_one_before_though_its_address_is_another() -> None:
    jobs = {job["job_name"]: job for job in read_yaml(ROOT / "infra/prometheus/prometheus.yaml")["scrape_configs"]}
    assert jobs["loadtest"]["relabel_configs"] == [{"target_label": "instance", "replacement": "loadtest"}]


def test_targets_scraped_seldom_have_a_longer_rate_interval(dashboards: list[Json]) -> None:
    """A rate over four times the data source's interval holds one sample, or none, of a job scraped less often."""
    config = read_yaml(ROOT / "infra/prometheus/prometheus.yaml")
    default = config["global"]["scrape_interval"]
    slow = {job["job_name"]: job.get("scrape_interval", default) for job in config["scrape_configs"]}
    for where, _, target in lint.targets(dashboards):
        rated = {s.metric.partition("_")[0] for s in selectors(target["expr"]) if lint.RATES & set(s.inside)}
        for job in rated & set(slow):
            assert slow[job] in (default, target.get("interval")), where


def panel(dashboards: list[Json], uid: str, panel_id: int) -> Json:
    (dashboard,) = [d for d in dashboards if d["uid"] == uid]
    (found,) = [p for p in dashboard["panels"] if p["id"] == panel_id]
    return dict_of(found)


def dict_of(value: Any) -> Json:
    assert isinstance(value, dict)
    return value


def set_expr(expr: str) -> Callable[[Json], None]:
    return lambda shown: shown["targets"][0].update(expr=expr)


def as_stat(target: Json) -> Callable[[Json], None]:
    """The panel as a stat that draws a curve and hides names, its queries changed."""

    def change(shown: Json) -> None:
        shown.update(type="stat", options={"textMode": "auto", "graphMode": "area"})
        for query in shown["targets"]:
            query.update(target)

    return change


def styled(shown: Json, **style: Any) -> None:
    shown["fieldConfig"]["defaults"]["custom"].update(style)
    shown["fieldConfig"]["defaults"]["thresholds"]["steps"].append({"color": "red", "value": 1})


def failures_of_all(shown: Json) -> None:
    shown["fieldConfig"]["defaults"]["unit"] = "percentunit"
    set_expr(f'sum(rate(http_requests_total{{{SCOPED}, status=~"5.."}}[$__rate_interval]))')(shown)


SCOPED = 'job=~"$job", instance=~"$instance"'
BREAKAGES: dict[str, tuple[str, Callable[[Json], Any], str]] = {
    "an empty list of targets": ("queried", lambda p: p["targets"].clear(), "no targets"),
    "an empty query": ("queried", set_expr(" "), "empty query"),
    "a fixed data source": ("queried", lambda p: p.update(datasource={"uid": "abc"}), "datasource"),
    "a query's fixed data source": ("queried", lambda p: p["targets"][0].update(datasource="x"), "of its own"),
    "no legend": ("queried", lambda p: p["targets"][0].update(legendFormat="__auto"), "no legend"),
    "no title": ("explained", lambda p: p.update(title=""), "no title"),
    "no description": ("explained", lambda p: p.pop("description"), "does not say"),
    "no unit": ("explained", lambda p: p["fieldConfig"]["defaults"].pop("unit"), "no unit"),
    "a fixed window": ("rates", set_expr(f"sum(rate(a_total{{{SCOPED}}}[5m]))"), "[5m]"),
    "a bare counter": ("rates", set_expr(f"sum(a_total{{{SCOPED}}})"), "outside of rate()"),
    "a rate per series": ("rates", set_expr(f"rate(a_total{{{SCOPED}}}[$__rate_interval])"), "not aggregated"),
    "no instance": ("templated", set_expr('max(active_users{job=~"$job"})'), "instance variable"),
    "a fixed job": ("templated", set_expr('max(active_users{job="query", instance=~"$instance"})'), "job variable"),
    "an unknown variable": ("templated", set_expr("up > $nothing"), "$nothing is not defined"),
    "an overlap": ("layout", lambda p: p["gridPos"].update(h=40), "overlap"),
    "a panel off the grid": ("layout", lambda p: p["gridPos"].update(x=23), "outside of the grid"),
    "a doubled id": ("identity", lambda p: p.update(id=1), "two panels with id"),
    "a doubled title": ("identity", lambda p: p.update(title="Traffic"), "two panels titled"),
    "a dead link": ("links", lambda p: p["links"].append({"url": "/d/nowhere"}), "no such dashboard"),
    "a link to no panel": (
        "links",
        lambda p: p["links"].append({"url": "/d/bi-slo?viewPanel=panel-999"}),
        "no such panel",
    ),
    "no objective": ("objectives", lambda p: del_queries(p, "SLO", "LIMIT"), "without the objective"),
    "no threshold": ("objectives", lambda p: p["transformations"].clear(), "do not go together"),
    "a threshold as a number": (
        "objectives",
        lambda p: p["fieldConfig"]["defaults"]["thresholds"]["steps"].append({"color": "red", "value": 2}),
        "a threshold as a number",
    ),
    "an objective as a number": ("literals", set_expr("up > 0.6"), "the number 0.6"),
    "a stat over a range": ("stats", as_stat({}), "no value now"),
    "a stat of several numbers without names": ("stats", as_stat({"instant": True}), "without their names"),
    "a curve behind one number": ("stats", as_stat({"instant": True}), "a curve behind"),
    "an alternative that stays": (
        "alternatives",
        set_expr(f'sum by (code) (a{{{SCOPED}}}) or label_replace(vector(0), "code", "none", "", "")'),
        "stays beside",
    ),
    "a number that stays": ("alternatives", set_expr(f"(sum by (code) (a{{{SCOPED}}}) or vector(0)) > 0"), "stays"),
    "thresholds that are not drawn": ("drawing", lambda p: styled(p, thresholdsStyle={"mode": "off"}), "not drawn"),
    "a share on an axis from 0": (
        "drawing",
        lambda p: p["targets"][1].update(expr="slo:objective:ratio"),
        "an axis from 0",
    ),
    "a heatmap of increases": (
        "drawing",
        lambda p: p.update(
            type="heatmap", targets=[{**p["targets"][0], "expr": "sum by (le) (increase(a_bucket[$__rate_interval]))"}]
        ),
        "counts each request",
    ),
    "a span that is not looked at": (
        "spans",
        lambda p: p.update(description="Lost over the last hour."),
        "'last hour'",
    ),
    "time-outs among the failures": ("failures", failures_of_all, "time-outs of ad-hoc queries"),
    "a bucket by its bound": ("literals", set_expr('sum(rate(a_bucket{le="2.0"}[$__rate_interval]))'), "a bucket"),
}


def del_queries(shown: Json, *refs: str) -> None:
    shown["targets"] = [target for target in shown["targets"] if target["refId"] not in refs]


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_the_rules_find(breakage: str, dashboards: list[Json]) -> None:
    rule, break_it, said = BREAKAGES[breakage]
    broken = copy.deepcopy(dashboards)
    break_it(panel(broken, "bi-service", 30))
    assert said in "\n".join(getattr(lint, rule)(broken))


def test_the_rules_find_a_variable_that_is_not_asked_as_label_values(dashboards: list[Json]) -> None:
    broken = copy.deepcopy(dashboards)
    variables(broken[0])[0]["query"]["qryType"] = 0
    assert any("not asked as label values" in problem for problem in lint.templated(broken))


@pytest.mark.parametrize("key", ["editable", "refresh", "description", "tags", "links"])
def test_the_rules_find_a_dashboard_without(key: str, dashboards: list[Json]) -> None:
    broken = copy.deepcopy(dashboards)
    broken[0][key] = None if key not in {"links", "tags"} else []
    assert list(lint.provisioned(broken)) or list(lint.links(broken))


def test_the_rules_find_two_dashboards_with_one_uid(dashboards: list[Json]) -> None:
    assert any("uid" in problem for problem in lint.identity([*dashboards, dashboards[0]]))
