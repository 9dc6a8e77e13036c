"""The edge restarted: the one door, so its connections are cut; who asks again is answered."""

from __future__ import annotations

import time

from tests.support.production import ProductionStack
from tests.support.service import wait_until
from tests.support.stack import docker

from .conftest import Chaos
from .hosts import kill


def test_the_edge_restarted(chaos: Chaos, stack: ProductionStack) -> None:
    with chaos.fault("the edge restarted", may_cut=("GET", "POST")) as ordeal:
        asked = time.monotonic()
        docker("restart", stack.inspect("edge")[0]["Id"], timeout=90)
        answered = ordeal.users.answered
        ordeal.heals(lambda: ordeal.users.answered > answered, "answers through the edge", since=asked)


def test_the_edge_killed(chaos: Chaos, stack: ProductionStack) -> None:
    victim = stack.inspect("edge")[0]
    with chaos.fault("the edge killed", may_cut=("GET", "POST")) as ordeal:
        killed = time.monotonic()
        kill(victim["State"]["Pid"])
        wait_until(lambda: stack.inspect("edge")[0]["RestartCount"] > victim["RestartCount"], 30, what="its restart")
        answered = ordeal.users.answered
        ordeal.heals(lambda: ordeal.users.answered > answered, "answers through the edge", since=killed)
