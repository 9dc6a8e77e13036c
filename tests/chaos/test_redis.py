"""Redis killed, paused, flushed, full and restarted under load: slower at most; then the replicas share answers again."""

from __future__ import annotations

from tests.support.production import ProductionStack
from tests.support.service import wait_until
from tests.support.stack import docker

from .conftest import Chaos, Ordeal
from .hosts import circuits_open, kill, share_answers

CLI = "REDISCLI_AUTH=$(cat /run/bi-secrets/redis-admin-password) redis-cli --user admin "


def redis_cli(stack: ProductionStack, command: str) -> str:
    return stack.compose("exec", "-T", "redis", "sh", "-c", CLI + command).stdout


def heals(ordeal: Ordeal, stack: ProductionStack) -> None:
    """The replicas share answers through it again."""
    ordeal.heals(lambda: share_answers(stack, ordeal.users.edge.headers), "the replicas to share answers again")


def test_redis_killed(chaos: Chaos, stack: ProductionStack) -> None:
    """As the kernel would: it comes back by itself, empty."""
    victim = stack.inspect("redis")[0]
    with chaos.fault("Redis killed") as ordeal:
        kill(victim["State"]["Pid"])
        wait_until(lambda: stack.inspect("redis")[0]["RestartCount"] > victim["RestartCount"], 30, what="its restart")
        heals(ordeal, stack)


def test_redis_paused_until_its_alert_fires(chaos: Chaos, stack: ProductionStack) -> None:
    with chaos.fault("Redis paused") as ordeal:
        stack.compose("pause", "redis")
        try:
            wait_until(lambda: circuits_open(stack) > 0, 30, what="a replica to give up on Redis for now")
            ordeal.users.more(300)
            ordeal.fires("RedisDown")
        finally:
            stack.compose("unpause", "redis")
        heals(ordeal, stack)


def test_redis_flushed(chaos: Chaos, stack: ProductionStack) -> None:
    with chaos.fault("Redis flushed") as ordeal:
        for _ in range(5):
            redis_cli(stack, "flushall")
            ordeal.users.more(50)
        heals(ordeal, stack)


def test_redis_full(chaos: Chaos, stack: ProductionStack) -> None:
    """Less memory than it needs for itself: nothing is left to evict and every write is refused."""
    limit = redis_cli(stack, "config get maxmemory").split()[-1]
    with chaos.fault("Redis full") as ordeal:
        redis_cli(stack, "config set maxmemory 1000000")
        try:
            refused = redis_cli(stack, "set probe 1")
            assert "OOM" in refused, refused
            ordeal.users.more(300)
        finally:
            redis_cli(stack, f"config set maxmemory {limit}")
        heals(ordeal, stack)


def test_redis_restarted(chaos: Chaos, stack: ProductionStack) -> None:
    with chaos.fault("Redis restarted") as ordeal:
        docker("restart", stack.inspect("redis")[0]["Id"])
        heals(ordeal, stack)
