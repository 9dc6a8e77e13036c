"""Alert rules, their promtool tests, their runbooks, and Prometheus' configuration."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest
from bi_query.metrics import metric_names

from tests.config.monitoring import ROOT, RULES, Rule, alert_names, alerts, load, passes, rules, tool
from tests.support.promql import selectors

RULE_TESTS = sorted((ROOT / "alerts/tests").glob("*.test.yaml"))
PROMETHEUS = ROOT / "infra/prometheus/prometheus.yaml"
RUNBOOKS = ROOT / "docs/runbooks.md"
SEVERITIES = {"critical", "warning", "info", "none"}
ANNOTATIONS = {"summary", "description", "runbook_url", "dashboard_url"}

# Metrics of others that rules read, by who exports them.
EXPORTED = {
    "prometheus": {
        "up",
        "prometheus_config_last_reload_successful",
        "prometheus_notifications_alertmanagers_discovered",
        "prometheus_notifications_errors_total",
        "prometheus_rule_evaluation_failures_total",
    },
    "alertmanager": {
        "alertmanager_config_last_reload_successful",
        "alertmanager_notifications_failed_total",
    },
    "blackbox_exporter": {"probe_success", "probe_ssl_earliest_cert_expiry"},
    "redis_exporter": {"redis_up", "redis_evicted_keys_total"},
    "node_exporter": {
        "node_filesystem_avail_bytes",
        "node_filesystem_size_bytes",
        "node_memory_MemAvailable_bytes",
        "node_memory_MemTotal_bytes",
    },
    "cadvisor": {"container_memory_working_set_bytes", "container_spec_memory_limit_bytes"},
    "process": {"process_resident_memory_bytes", "process_start_time_seconds"},
}


def test_promtool_accepts_every_rule() -> None:
    passes(tool("promtool", "prometheus"), "check", "rules", "--lint-fatal", *RULES)


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.name.removesuffix(".test.yaml"))
def test_rules_fire_and_stay_silent_as_their_cases_say(path: Path) -> None:
    passes(tool("promtool", "prometheus"), "test", "rules", path)


def cases() -> list[Rule]:
    return [case for path in RULE_TESTS for case in load(path)["tests"]]


def test_every_alert_has_a_case_that_fires_and_one_that_stays_silent() -> None:
    fires: dict[tuple[str, str], int] = defaultdict(int)
    silent: dict[str, int] = defaultdict(int)
    for case in cases():
        for expected in case.get("alert_rule_test", []):
            fired = expected.get("exp_alerts") or []
            silent[expected["alertname"]] += not fired
            for alert in fired:
                fires[expected["alertname"], alert["exp_labels"]["severity"]] += 1
    wanted = {(rule["alert"], rule["labels"]["severity"]) for rule in alerts()}
    assert {key for key in wanted if not fires[key]} == set(), "no case in which it fires"
    # Always firing is what the watchdog is for.
    assert {name for name, _ in wanted - {("Watchdog", "none")} if not silent[name]} == set(), "no silent case"


def test_cases_are_sentences_that_differ_within_their_file() -> None:
    for path in RULE_TESTS:
        seen = [
            (case["name"], case.get("alert_rule_test", [{}])[0].get("alertname", "")) for case in load(path)["tests"]
        ]
        assert len(seen) == len(set(seen)), path.name
        assert [name for name, _ in seen if len(name.split()) < 3] == [], path.name


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_an_alert_says_what_where_and_what_to_do(rule: Rule) -> None:
    notes = rule["annotations"]
    assert set(notes) == ANNOTATIONS
    assert rule["labels"]["severity"] in SEVERITIES
    assert "{{" not in notes["summary"] and notes["summary"].endswith(".")
    assert notes["description"].endswith(".")
    base = load(ROOT / "slo.yaml")["alerting"]["runbook_base"]
    assert notes["runbook_url"] == f"{base}#{rule['alert'].lower()}"
    assert re.fullmatch(
        r"/d/bi-(service|cache|engine|redis|loadtest|slo)(\?viewPanel=panel-\d+)?", notes["dashboard_url"]
    )


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    headings = re.findall(r"^### (.+)$", RUNBOOKS.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(headings) == alert_names()


@pytest.mark.parametrize("name", alert_names())
def test_a_runbook_says_what_it_means_how_to_look_and_what_to_do(name: str) -> None:
    text = RUNBOOKS.read_text(encoding="utf-8").split(f"\n### {name}\n")[1].split("\n## ")[0].split("\n### ")[0]
    assert [part for part in ("**Meaning.**", "**Look.**", "**Do.**") if part not in text] == []


def test_runbooks_link_to_headings_that_exist() -> None:
    anchors = set(re.findall(r"\]\(#(\w+)\)", RUNBOOKS.read_text(encoding="utf-8")))
    assert anchors - {name.lower() for name in alert_names()} == set()


def known_metrics() -> set[str]:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    return set(metric_names()) | recorded | set().union(*EXPORTED.values())


def test_every_metric_that_a_rule_reads_is_exported_by_somebody() -> None:
    named = {selector.metric for rule in rules() for selector in selectors(rule["expr"])}
    assert named - known_metrics() == set()


def test_every_metric_that_a_template_or_a_runbook_reads_is_exported_by_somebody() -> None:
    text = RUNBOOKS.read_text(encoding="utf-8") + "".join(str(rule["annotations"]) for rule in alerts())
    named = set(
        re.findall(r"\b(?:bi_[a-z_]+|bi:[a-z_:0-9]+|slo:[a-z_:0-9]+|redis_[a-z_]+_total|node_\w+|probe_\w+)", text)
    )
    assert named - known_metrics() == set()


def test_the_list_of_others_metrics_names_nothing_unused() -> None:
    named = {selector.metric for rule in rules() for selector in selectors(rule["expr"])}
    assert set().union(*EXPORTED.values()) - named == set()


def test_counters_are_rated_before_they_are_summed() -> None:
    backwards = re.compile(r"(rate|increase)\s*\(\s*(sum|avg|max|min)\b")
    assert [rule["expr"] for rule in rules() if backwards.search(rule["expr"])] == []


def test_promtool_accepts_prometheus_configuration() -> None:
    passes(tool("promtool", "prometheus"), "check", "config", "--syntax-only", PROMETHEUS)


def test_rules_select_jobs_that_prometheus_scrapes() -> None:
    scraped = {config["job_name"] for config in load(PROMETHEUS)["scrape_configs"]}
    selected = {
        selector.matchers["job"].removeprefix("=").strip('"')
        for rule in rules()
        for selector in selectors(rule["expr"])
        if selector.matchers.get("job", "").startswith("=") and not selector.matchers["job"].startswith("=~")
    }
    assert selected and selected - scraped == set()
