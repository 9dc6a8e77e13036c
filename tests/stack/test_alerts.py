"""The brief's two alerts fire with the rules as they are shipped, and arrive. The faults came from the fixture `faults`."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from tests.support.service import wait_until
from tests.support.stack import MEASURED, Prometheus

from .conftest import Faults
from .receiver import Receiver

BRIEFS = ["ApiErrorRateHigh", "ApiLatencyHigh"]


@pytest.mark.parametrize("name", BRIEFS)
def test_the_alert_fires_and_arrives(name: str, faults: Faults, prometheus: Prometheus, receiver: Receiver) -> None:
    def seen() -> str:
        pending = [f"{a['labels']['alertname']} {a['state']}" for a in prometheus.get("alerts")["alerts"]]
        return f"{name} at the receiver; Prometheus has {pending}, the receiver {sorted(receiver.names('team'))}"

    within = max(20.0, faults.at + 150 - time.time())
    alerts = wait_until(lambda: receiver.alerts("team", name), within, what=seen)
    fired = datetime.fromisoformat(alerts[0]["startsAt"].replace("Z", "+00:00")).timestamp()
    MEASURED[f"from fault to {name} firing"] = f"{fired - faults.at:.0f} s"
    labels, notes = alerts[0]["labels"], alerts[0]["annotations"]
    assert labels["severity"] == "critical", "the budget's own alert, which is critical, would mute it"
    assert notes["summary"] and notes["description"] and "{{" not in notes["description"]
    assert notes["runbook_url"].endswith(f"#{name.lower()}")
    assert notes["dashboard_url"].startswith("/d/bi-service")
