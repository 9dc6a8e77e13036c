"""The dashboards people import for sloth show our rules: Grafana's 14348 (SLO / Detail) and 14643 (High level Sloth SLOs).

Which series and labels their panels and variables ask for was read from both, revisions of 2021, and is listed here.
"""

from __future__ import annotations

import pytest

from tests.config.monitoring import ROOT, Rule, alerts, load, rules

SLO = load(ROOT / "slo.yaml")
OBJECTIVES = ("availability", "latency")
# The choices of 14348's variable of windows, each a series of its own.
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d", "30d")
CHOSEN = {"sloth_service", "sloth_slo"}  # by the variables of 14348
# Series, with the labels that a panel selects, joins or names its lines by.
SERIES = {
    "slo:objective:ratio": CHOSEN | {"sloth_id"},
    "slo:error_budget:ratio": CHOSEN | {"sloth_id"},
    "slo:current_burn_rate:ratio": CHOSEN | {"sloth_id"},
    "slo:period_error_budget_remaining:ratio": CHOSEN | {"sloth_id"},
    "sloth_slo_info": CHOSEN | {"sloth_objective"},
} | {f"slo:sli_error:ratio_rate{window}": CHOSEN | {"sloth_id"} for window in WINDOWS}
ALERT_LABELS = {"sloth_id", "sloth_service", "sloth_slo", "sloth_severity"}


def recorded(name: str, slo: str) -> list[Rule]:
    return [rule for rule in rules() if rule.get("record") == name and rule["labels"]["sloth_slo"] == slo]


@pytest.mark.parametrize("slo", OBJECTIVES)
@pytest.mark.parametrize("name", SERIES)
def test_each_series_is_recorded_once_for_each_objective_with_the_labels_asked_for(name: str, slo: str) -> None:
    (rule,) = recorded(name, slo)  # the month's budget is divided `on(sloth_id)`: two would not match
    assert SERIES[name] <= rule["labels"].keys()
    assert rule["labels"]["sloth_service"] == SLO["service"]


@pytest.mark.parametrize("slo", OBJECTIVES)
def test_the_objective_is_named_as_a_percentage(slo: str) -> None:
    (rule,) = recorded("sloth_slo_info", slo)
    assert float(rule["labels"]["sloth_objective"]) == SLO[slo]["objective_percent"]


@pytest.mark.parametrize("slo", OBJECTIVES)
@pytest.mark.parametrize("severity", ["page", "ticket"])
def test_an_alert_that_fires_carries_what_the_panels_select_it_by(slo: str, severity: str) -> None:
    name = f"Api{slo.capitalize()}BudgetBurn"
    assert [rule for rule in alerts() if rule["alert"] == name and rule["labels"]["sloth_severity"] == severity]
    # Some of its labels come from the series: what promtool saw it fire with.
    fired = [
        alert["exp_labels"]
        for path in sorted((ROOT / "alerts/tests").glob("slo_burn_*.test.yaml"))
        for case in load(path)["tests"]
        for expected in case.get("alert_rule_test", [])
        for alert in expected.get("exp_alerts") or []
        if expected["alertname"] == name and alert["exp_labels"]["sloth_severity"] == severity
    ]
    assert fired
    assert [labels for labels in fired if not labels.keys() >= ALERT_LABELS or labels["sloth_slo"] != slo] == []
