"""Prometheus and Alertmanager gone: users do not notice, and both take up again where they were."""

from __future__ import annotations

import httpx

from tests.support.production import ProductionStack
from tests.support.service import wait_until
from tests.support.stack import address, docker

from .conftest import REPLICAS, Chaos, prometheus_of


def alertmanager(stack: ProductionStack) -> str:
    return f"http://{address(stack.inspect('alertmanager', running=True)[0])}:9093"


def ready(stack: ProductionStack) -> bool:
    return httpx.get(f"{alertmanager(stack)}/-/ready", timeout=2).status_code == 200


def alerting_works(stack: ProductionStack) -> bool:
    """Whether Prometheus scrapes every replica now and its always-firing alert is at Alertmanager."""
    live = prometheus_of(stack).numbers('count(up{job="query"} == 1 and timestamp(up{job="query"}) > time() - 10)')
    alerts = httpx.get(f"{alertmanager(stack)}/api/v2/alerts", timeout=5).json()
    return live == [REPLICAS] and "Watchdog" in {alert["labels"]["alertname"] for alert in alerts}


def test_prometheus_and_alertmanager_gone(chaos: Chaos, stack: ProductionStack) -> None:
    both = [stack.inspect(service)[0]["Id"] for service in ("alertmanager", "prometheus")]
    with chaos.fault("Prometheus and Alertmanager gone") as ordeal:
        docker("kill", *both)
        try:
            ordeal.users.more(1000)
        finally:
            # In this order: an alert that finds Alertmanager away is sent again only after a minute.
            docker("start", both[0])
            wait_until(lambda: ready(stack), 30, what="Alertmanager to be ready")
            docker("start", both[1])
        ordeal.heals(lambda: alerting_works(stack), "alerting to work from scrape to Alertmanager", within_seconds=120)
