"""The stack comes up, and its parts find each other."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import httpx
import pytest
from mounted import CHECKS, check
from stack_tools import Failure

from tests.support.service import wait_until
from tests.support.stack import SERVICE_LABEL, Prometheus, Stack, has_grafana

from .receiver import Receiver

SERVICES = {
    "query",
    "publisher",
    "edge",
    "redis",
    "redis-exporter",
    "llm",
    "llm-gate",
    "prometheus",
    "alertmanager",
    "blackbox",
    "node-exporter",
}
JOBS = {
    "query",
    "prometheus",
    "alertmanager",
    "redis",
    "node",
    "blackbox",
    "probe-edge",
    "probe-service",
    "probe-replicas",
}


def test_every_service_is_healthy_and_every_one_shot_ended_well(stack: Stack) -> None:
    states = {c["Config"]["Labels"][SERVICE_LABEL]: c["State"] for c in stack.inspect()}
    healthy = {name for name, state in states.items() if state.get("Health", {}).get("Status") == "healthy"}
    assert healthy == SERVICES | ({"grafana"} if has_grafana() else set())
    assert {name: states[name]["ExitCode"] for name in states.keys() - healthy} == {"secrets-init": 0, "publish": 0}


def test_the_service_answers_through_the_edge(stack: Stack) -> None:
    answer = stack.get("/api/v1/queries/shops")
    assert answer.status_code == 200 and answer.json()["row_count"] == 4


def test_every_target_of_prometheus_is_up(prometheus: Prometheus) -> None:
    def all_up() -> bool:
        targets = prometheus.get("targets?state=active")["activeTargets"]
        down = {f"{t['labels']['job']} {t['scrapeUrl']}: {t['lastError']}" for t in targets if t["health"] != "up"}
        jobs = {target["labels"]["job"] for target in targets}
        assert not down and jobs == JOBS | ({"grafana"} if has_grafana() else set()), (down, jobs)
        return True

    wait_until(all_up, 40, what="every target to be up")


def two_of(prometheus: Prometheus, expr: str) -> bool:
    return len(prometheus.query(expr)) == 2


def test_both_replicas_are_found_by_their_name_and_probed_from_outside(stack: Stack, prometheus: Prometheus) -> None:
    for expr in ('up{job="query"} == 1', 'probe_success{job="probe-replicas"} == 1'):
        wait_until(partial(two_of, prometheus, expr), 40, what=f"two of {expr}")
    door = 'probe_success{job="probe-edge", instance="http://edge:8000/health/ready"} == 1'
    wait_until(lambda: bool(prometheus.query(door)), 40, what=door)
    assert len(stack.replicas()) == 2


def test_every_rule_is_loaded_and_evaluates(prometheus: Prometheus) -> None:
    def evaluated() -> bool:
        groups = prometheus.get("rules")["groups"]
        bad = {
            f"{r['name']}: {r['health']} {r.get('lastError', '')}"
            for g in groups
            for r in g["rules"]
            if r["health"] != "ok"
        }
        assert not bad, bad
        return {group["file"].rsplit("/", 1)[1] for group in groups} == {
            "chat.rules.yaml", "platform.rules.yaml", "redis.rules.yaml", "service.rules.yaml", "slo.rules.yaml",
        }  # fmt: skip

    wait_until(evaluated, 90, what="every rule to have been evaluated without an error")
    assert prometheus.numbers("sum(prometheus_rule_evaluation_failures_total)") == [0]


def test_prometheus_hands_its_alerts_to_alertmanager(stack: Stack, prometheus: Prometheus) -> None:
    assert [a["url"] for a in prometheus.get("alertmanagers")["activeAlertmanagers"]]
    wait_until(
        lambda: any(
            alert["labels"]["alertname"] == "Watchdog"
            for alert in httpx.get(f"{stack.url('ALERTMANAGER')}/api/v2/alerts", timeout=10).json()
        ),
        60,
        what="the Watchdog at Alertmanager",
    )


def test_the_watchdog_reaches_the_heartbeat_receiver_and_nobody_else(stack: Stack, receiver: Receiver) -> None:
    wait_until(
        lambda: receiver.alerts("heartbeat", "Watchdog"), 60, what=lambda: f"a Watchdog; {receiver.names('heartbeat')}"
    )
    assert receiver.names("heartbeat") == {"Watchdog firing"}
    assert not receiver.alerts("team", "Watchdog")


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_what_a_service_says_of_its_own_files_before_a_restart_is_that_they_are_good(name: str, stack: Stack) -> None:
    (container,) = stack.inspect(name, running=True)
    check(container, CHECKS[name])


def test_a_mounted_folder_that_is_gone_fails_the_check_and_is_not_made(stack: Stack, tmp_path: Path) -> None:
    (container,) = stack.inspect("prometheus", running=True)
    gone = tmp_path / 'a "folder", gone'
    container["Mounts"].append({"Type": "bind", "Source": str(gone), "Destination": "/gone"})
    with pytest.raises(Failure, match=r"(?s)runs on its old files: its check failed:.*does not exist"):
        check(container, CHECKS["prometheus"])
    assert not gone.exists()
    gone.mkdir()
    check(container, CHECKS["prometheus"])


def test_prometheus_is_not_restarted_onto_rules_that_it_cannot_read(stack: Stack, tmp_path: Path) -> None:
    (container,) = stack.inspect("prometheus", running=True)
    (tmp_path / "rules.yaml").write_text("groups: [{name: broken, rules: [{alert: A, expr: 'sum('}]}]")
    tmp_path.chmod(0o755)
    for mount in container["Mounts"]:
        if mount["Destination"] == "/etc/prometheus/rules":
            mount["Source"] = str(tmp_path)
    with pytest.raises(Failure, match=r"(?s)runs on its old files.*rules\.yaml.*parse error"):
        check(container, CHECKS["prometheus"])
