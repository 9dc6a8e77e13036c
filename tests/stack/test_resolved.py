"""The alerts of test_alerts end by themselves once the faults have stopped."""

from __future__ import annotations

import pytest

from tests.support.service import wait_until
from tests.support.stack import Prometheus, Stack

from .receiver import Receiver
from .test_alerts import BRIEFS
from .traffic import traffic


@pytest.mark.parametrize("name", BRIEFS)
def test_the_alert_resolves_after_the_faults_stop(
    name: str, stack: Stack, prometheus: Prometheus, receiver: Receiver
) -> None:
    with traffic(stack, users=2, pause_seconds=0.1):
        wait_until(
            lambda: receiver.alerts("team", name, "resolved"),
            150,
            what=lambda: f"{name} resolved; the receiver has {sorted(receiver.names('team'))}",
        )
        wait_until(
            lambda: not prometheus.query(f'ALERTS{{alertname="{name}", alertstate="firing"}}'),
            150,
            what=f"{name} not to fire any more",
        )


def test_an_edge_that_is_gone_is_told_of_while_the_service_behind_it_answers(
    stack: Stack, prometheus: Prometheus, receiver: Receiver
) -> None:
    stack.compose("stop", "edge")
    try:
        wait_until(
            lambda: receiver.alerts("team", "EdgeUnreachable", "firing"),
            120,
            what=lambda: f"EdgeUnreachable; the receiver has {sorted(receiver.names('team'))}",
        )
        assert not prometheus.query('ALERTS{alertname="ServiceUnreachable"}')
    finally:
        stack.up("edge")
    wait_until(lambda: receiver.alerts("team", "EdgeUnreachable", "resolved"), 120, what="EdgeUnreachable resolved")
