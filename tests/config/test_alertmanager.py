"""Alertmanager's configuration, as its entrypoint writes it from settings: checked by amtool."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.config.monitoring import ROOT, Rule, alert_names, load, passes, tool

ENTRYPOINT = ROOT / "infra/alertmanager/entrypoint.sh"


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """Settings for every receiver at once; ALERT_RECEIVER chooses."""
    for name in ("webhook", "slack", "heartbeat"):
        (tmp_path / name).write_text(f"http://receiver.test/{name}\n")
    (tmp_path / "password").write_text("it's: a #secret\n")
    return {
        "ALERT_CONFIG": str(tmp_path / "alertmanager.yaml"),
        "ALERT_WEBHOOK_URL_FILE": str(tmp_path / "webhook"),
        "ALERT_SLACK_URL_FILE": str(tmp_path / "slack"),
        "ALERT_SLACK_CHANNEL": "#bi-alert's",
        "ALERT_EMAIL_TO": "team@bi.test",
        "ALERT_EMAIL_FROM": "alerts@bi.test",
        "ALERT_SMTP_HOST": "mail.test:587",
        "ALERT_SMTP_USER": "o'brien",
        "ALERT_SMTP_PASSWORD_FILE": str(tmp_path / "password"),
        "ALERT_HEARTBEAT_URL_FILE": str(tmp_path / "heartbeat"),
    }


def rendered(settings: dict[str, str], **changed: str) -> Any:
    passes("sh", ENTRYPOINT, "--render", **(settings | changed))
    return load(Path(settings["ALERT_CONFIG"]))


def refused(settings: dict[str, str], **changed: str) -> str:
    done = subprocess.run(
        ["sh", ENTRYPOINT, "--render"], env=os.environ | settings | changed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert not Path(settings["ALERT_CONFIG"]).exists()
    return done.stderr


def routed_to(config: Any, name: str) -> Rule:
    found: Rule = next(receiver for receiver in config["receivers"] if receiver["name"] == name)
    return found


def amtool_accepts(path: Path) -> None:
    amtool = tool("amtool", "prometheus-alertmanager")
    version = passes(amtool, "--version")
    if "version 0.25" in version:
        # Debian 12's does not know `url_file` in webhooks (0.26 does): it checks the rest.
        path.write_text(re.sub(r"url_file: '.*'", "url: 'http://receiver.test/'", path.read_text()))
    passes(amtool, "check-config", path)


@pytest.mark.parametrize("receiver", ["none", "webhook", "slack", "email"])
def test_amtool_accepts_the_configuration_of_each_receiver(receiver: str, settings: dict[str, str]) -> None:
    config = rendered(settings, ALERT_RECEIVER=receiver)
    kinds = {"none": set(), "webhook": {"webhook_configs"}, "slack": {"slack_configs"}, "email": {"email_configs"}}
    assert set(routed_to(config, "team")) - {"name"} == kinds[receiver]
    amtool_accepts(Path(settings["ALERT_CONFIG"]))


@pytest.mark.parametrize("receiver", ["webhook", "slack", "email"])
def test_no_secret_is_written_into_the_configuration(receiver: str, settings: dict[str, str]) -> None:
    rendered(settings, ALERT_RECEIVER=receiver)
    text = Path(settings["ALERT_CONFIG"]).read_text()
    assert "receiver.test" not in text and "#secret" not in text


def test_values_with_quotes_arrive_as_they_are(settings: dict[str, str]) -> None:
    slack = routed_to(rendered(settings, ALERT_RECEIVER="slack"), "team")["slack_configs"][0]
    email = routed_to(rendered(settings, ALERT_RECEIVER="email"), "team")["email_configs"][0]
    assert slack["channel"] == "#bi-alert's"
    assert email["auth_username"] == "o'brien"


def test_without_a_heartbeat_address_the_watchdog_goes_nowhere(settings: dict[str, str]) -> None:
    assert routed_to(rendered(settings, ALERT_HEARTBEAT_URL_FILE=""), "heartbeat") == {"name": "heartbeat"}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"ALERT_RECEIVER": "pager"}, "BI_ALERT_RECEIVER is none, webhook, email or slack, not pager"),
        ({"ALERT_RECEIVER": "webhook", "ALERT_WEBHOOK_URL_FILE": ""}, "needs BI_ALERT_WEBHOOK_URL_FILE"),
        (
            {"ALERT_RECEIVER": "webhook", "ALERT_WEBHOOK_URL_FILE": "/nowhere"},
            "BI_ALERT_WEBHOOK_URL_FILE: cannot read /nowhere",
        ),
        (
            {"ALERT_RECEIVER": "slack", "ALERT_SLACK_URL_FILE": "/dev/null"},
            "BI_ALERT_SLACK_URL_FILE: /dev/null is empty",
        ),
        ({"ALERT_RECEIVER": "email", "ALERT_SMTP_HOST": ""}, "needs BI_ALERT_SMTP_HOST"),
        ({"ALERT_RECEIVER": "email", "ALERT_SMTP_TLS": "maybe"}, "BI_ALERT_SMTP_TLS is true or false"),
        ({"ALERT_GRAFANA_URL": "http://x'"}, "BI_GRAFANA_URL is not a plain address"),
        ({"ALERT_GROUP_WAIT": "soon"}, "BI_ALERT_GROUP_WAIT is not a duration: soon"),
    ],
)
def test_a_setting_that_is_missing_or_wrong_is_named(
    changed: dict[str, str], says: str, settings: dict[str, str]
) -> None:
    assert says in refused(settings, **changed)


def test_a_critical_alert_mutes_the_warnings_of_its_objective(settings: dict[str, str]) -> None:
    rules = rendered(settings)["inhibit_rules"]
    by_objective = [rule for rule in rules if rule.get("equal") == ["slo"]]
    assert len(by_objective) == 1
    # Without this every alert without an objective would share the empty one.
    assert 'slo!=""' in by_objective[0]["source_matchers"] and 'slo!=""' in by_objective[0]["target_matchers"]


def test_inhibitions_name_alerts_that_exist(settings: dict[str, str]) -> None:
    matchers = [
        matcher
        for rule in rendered(settings)["inhibit_rules"]
        for matcher in rule["source_matchers"] + rule["target_matchers"]
        if matcher.startswith("alertname")
    ]
    named = {name for matcher in matchers for name in matcher.split('"')[1].split("|")}
    assert named and named - set(alert_names()) == set()


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (["alertname=Watchdog", "severity=none"], "heartbeat"),
        (["alertname=RedisDown", "severity=warning"], "team"),
        (["alertname=ApiErrorRateHigh", "severity=critical"], "team"),
        (["alertname=Anything", "severity=info"], "nobody"),
    ],
)
def test_alerts_are_routed_to_who_should_hear_them(labels: list[str], receiver: str, settings: dict[str, str]) -> None:
    rendered(settings, ALERT_RECEIVER="slack", ALERT_HEARTBEAT_URL_FILE="")
    amtool = tool("amtool", "prometheus-alertmanager")
    command = [amtool, "config", "routes", "test", f"--config.file={settings['ALERT_CONFIG']}", *labels]
    assert passes(*command).splitlines()[0] == receiver
