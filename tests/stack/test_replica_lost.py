"""A replica that is killed under traffic: the edge hides it, and it comes back by itself."""

from __future__ import annotations

from tests.support.service import wait_until
from tests.support.stack import MEASURED, Stack, compose_image, docker

from .traffic import traffic

KILL = "import os, sys; os.kill(int(sys.argv[1]), 9)"


def kill(pid: int) -> None:
    """End a container's first process as the kernel would: `docker kill` counts as asked for and is not restarted."""
    flags = ["run", "--rm", "--pid", "host", "--user", "0", "--network", "none", "--entrypoint", "python"]
    docker(*flags, compose_image("BI_QUERY_IMAGE"), "-c", KILL, str(pid))


def test_a_replica_killed_under_traffic_fails_no_get_and_comes_back(stack: Stack) -> None:
    victim = stack.inspect("query", running=True)[0]

    def back() -> bool:
        now = next(container for container in stack.inspect("query") if container["Id"] == victim["Id"])
        return bool(now["RestartCount"] > victim["RestartCount"] and now["State"]["Health"]["Status"] == "healthy")

    with traffic(stack, users=6) as users:
        wait_until(lambda: users.answered > 100, what="traffic")
        kill(victim["State"]["Pid"])
        wait_until(back, 60, what=lambda: f"the killed replica to be back; {stack.explain()}")
        after = users.answered
        wait_until(lambda: users.answered > after + 200, 30, what="traffic on both again")
    MEASURED["requests while a replica was killed"] = f"{users.answered}, {len(users.failures)} of them failed"
    assert users.failures == []


def test_a_replica_that_is_stopped_politely_fails_no_request(stack: Stack) -> None:
    victim = stack.inspect("query", running=True)[0]["Id"]
    with traffic(stack, users=6) as users:
        wait_until(lambda: users.answered > 100, what="traffic")
        docker("restart", victim, timeout=90)
        after = users.answered
        wait_until(lambda: users.answered > after + 200, 30, what="traffic after the restart")
    assert users.failures == []
