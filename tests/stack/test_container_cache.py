"""The shared tier of the cache on a Redis container: the image that compose.yaml runs, two service processes beside it.

tests/service holds the deep tests on a local redis-server; these show that the container behaves as that one does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from tests.support.service import Service, free_port, running, wait_until
from tests.support.small import Small, make_small
from tests.support.stack import compose_image


class Redis:
    """A Redis container on a port that stays the same through `stop` and `start`."""

    def __init__(self, container: DockerContainer, port: int) -> None:
        self.container = container.get_wrapped_container()
        self.url = f"redis://127.0.0.1:{port}/0"
        self.client = redis.Redis(port=port, socket_timeout=2)

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError as error:
            raise OSError(str(error)) from error


@pytest.fixture(scope="module")
def redis_container(engine: None) -> Iterator[Redis]:
    """Redis as testcontainers starts it. Without its reaper, which is an image of its own."""
    testcontainers_config.ryuk_disabled = True
    port = free_port()
    container = DockerContainer(compose_image("BI_REDIS_IMAGE"), entrypoint="redis-server")
    container.with_command("--save '' --protected-mode no --maxmemory 64mb").with_bind_ports(6379, port)
    with container:
        found = Redis(container, port)
        wait_until(found.answers, 30, what="Redis to answer")
        yield found


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Small:
    small = make_small(tmp_path_factory.mktemp("cache"))
    small.publish()
    return small


@pytest.fixture(scope="module")
def pair(published: Small, redis_container: Redis) -> Iterator[tuple[Service, Service]]:
    """Two processes that share nothing but Redis. Each test asks with parameters of its own."""
    settings: dict[str, object] = {"redis_url": redis_container.url, "catalogue_dir": published.catalogue}
    with running(published.snapshots, **settings) as one, running(published.snapshots, **settings) as other:
        yield one, other


def executions(pair: tuple[Service, Service]) -> float:
    return sum(service.metric("bi_engine_queries_total", outcome="ok") for service in pair)


def redis_errors(pair: tuple[Service, Service]) -> float:
    return sum(service.metric("bi_cache_redis_errors_total") for service in pair)


def test_what_one_process_computed_the_other_has(pair: tuple[Service, Service]) -> None:
    assert pair[0].query("shops", limit=51).headers["X-Cache"] == "miss"
    wait_until(lambda: _shared(pair), what="a hit in the other process")
    assert pair[1].metric("bi_cache_requests_total", result="hit", tier="redis") >= 1


def test_an_answer_expires_in_the_container_too(pair: tuple[Service, Service], redis_container: Redis) -> None:
    pair[0].query("shops", limit=52)
    keys = wait_until(lambda: list(redis_container.client.scan_iter("*")), what="a key")
    assert any(redis_container.client.ttl(key) > 0 for key in keys)
    assert not [key for key in keys if redis_container.client.ttl(key) == -1], "a key that stays for ever"


def test_an_invalidation_in_one_process_reaches_the_other(pair: tuple[Service, Service]) -> None:
    one, other = pair
    one.query("shops", limit=53)
    wait_until(lambda: other.query("shops", limit=53).headers["X-Cache"] == "hit", what="a hit in the other process")
    before = executions(pair)
    assert one.client.delete("/api/v1/cache", params={"query": "shops"}).status_code == 200
    wait_until(lambda: other.metric("bi_cache_invalidations_total", scope="remote") >= 1, what="word of it")
    assert other.query("shops", limit=53).headers["X-Cache"] == "miss"
    assert executions(pair) == before + 1


def test_many_identical_misses_on_both_processes_run_once(pair: tuple[Service, Service]) -> None:
    before, failed = executions(pair), redis_errors(pair)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda i: pair[i % 2].query("slow", size=12), range(12)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    # When Redis does not answer in time each process computes without it, once.
    assert 1 <= executions(pair) - before <= (2 if redis_errors(pair) > failed else 1)


@pytest.mark.parametrize("how", ["stopped", "paused", "flushed"])
def test_a_container_that_is_lost_costs_no_answer(
    how: str, pair: tuple[Service, Service], redis_container: Redis
) -> None:
    lose, heal = {
        "stopped": (lambda: redis_container.container.stop(timeout=1), redis_container.container.start),
        "paused": (redis_container.container.pause, redis_container.container.unpause),
        "flushed": (redis_container.client.flushall, lambda: None),
    }[how]
    pair[0].query("quick")
    lose()
    try:
        started = time.monotonic()
        for number in range(40):
            answer = pair[number % 2].query("shops", limit=number + 1)
            assert answer.status_code == 200, answer.text
        assert time.monotonic() - started < 15
    finally:
        heal()
    wait_until(redis_container.answers, 30, what="Redis to answer again")
    wait_until(lambda: _shared(pair), 60, what="the processes to share answers again")


def _shared(pair: tuple[Service, Service]) -> bool:
    """Whether what one computes is a hit in the other, which was never asked for it."""
    sql = f"select {time.monotonic_ns()} as asked"
    pair[0].sql(sql)
    return pair[1].sql(sql).headers["X-Cache"] == "hit"


def test_the_image_is_the_one_that_compose_runs(redis_container: Redis) -> None:
    assert Path(redis_container.container.attrs["Path"]).name == "redis-server"
    assert redis_container.client.info("server")["redis_version"].split(".")[0] >= "7"
