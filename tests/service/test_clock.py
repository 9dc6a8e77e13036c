"""The clock of a running service jumps by an hour, forward and back, while thirty users ask."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.load import Edge, Load, load, right_answers
from tests.support.clock import HOUR, JUMPS, built_into, environment, offset
from tests.support.redis_server import RedisServer
from tests.support.service import Service, wait_until
from tests.support.stack import MEASURED

TABLES = "/api/v1/tables"


class Plain(Edge):
    """A service without an edge, asked over plain HTTP."""

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


class Clock:
    """The time of day as one service sees it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._file = folder / "clock"
        self.environment = environment(built_into(folder), self._file)
        for name, value in self.environment.items():  # for the service that is started next
            monkeypatch.setenv(name, value)
        self._monkeypatch = monkeypatch

    def leave_others(self) -> None:
        """What is started from now on sees the true time."""
        for name in self.environment:
            self._monkeypatch.delenv(name)

    def jump(self, service: Service, seconds: int) -> None:
        """Be so much ahead of the true time (behind, where negative); until the service sees it."""
        turned = self._file.with_suffix(".turned")
        turned.write_text(f"{seconds:+d}")
        turned.rename(self._file)
        wait_until(
            lambda: abs(offset(service.url) - seconds) < 10, what=lambda: f"{seconds} s, not {offset(service.url)}"
        )


def statuses(service: Service, client: str, count: int) -> list[int]:
    return [service.get(TABLES, headers={"X-API-Key": client}).status_code for _ in range(count)]


def assert_cache_works(service: Service, limit: int) -> None:
    """A new question is computed, then answered from memory, with times that make sense."""
    first, again = service.query("shops", limit=limit), service.query("shops", limit=limit)
    assert (first.headers["x-cache"], again.headers["x-cache"]) == ("miss", "hit")
    assert 0 <= int(again.headers["age"]) < 60
    assert 0 < int(again.headers["cache-control"].partition("max-age=")[2].partition(",")[0]) <= HOUR


def judge(users: Load, name: str) -> None:
    MEASURED[f"clock: {name}"] = users.told()
    assert users.wrong == []
    assert users.failed == [], users.told()


def test_a_clock_that_jumps_by_an_hour_is_not_noticed_by_thirty_users(
    serve: Callable[..., Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(tmp_path, monkeypatch)
    service = serve(rate_limit_routes={TABLES: "5/hour"})
    clock.leave_others()
    assert statuses(service, "early", 6) == [200] * 5 + [429]
    door = Plain(service.port, "127.0.0.1", ssl.create_default_context(), {})
    with load(door, right_answers([service.url], {})) as users:
        for turn, seconds in enumerate(JUMPS):
            clock.jump(service, seconds)
            users.more(200)
            assert_cache_works(service, 50 + turn)
            # The window of who has spent its quota is neither over nor longer; others have theirs.
            refused = service.get(TABLES, headers={"X-API-Key": "early"})
            assert refused.status_code == 429
            assert 0 < int(refused.headers["retry-after"]) <= HOUR
            assert statuses(service, f"new-{turn}", 6) == [200] * 5 + [429]
    judge(users, "a service alone, an hour forward, back, back, forward")


def test_replicas_whose_clocks_are_an_hour_apart_give_the_same_answers(
    serve: Callable[..., Service], redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(tmp_path, monkeypatch)
    jumping = serve(redis_url=redis_server.url)
    clock.leave_others()
    steady = serve(redis_url=redis_server.url)
    doors = [Plain(each.port, "127.0.0.1", ssl.create_default_context(), {}) for each in (jumping, steady)]
    expected = right_answers([jumping.url, steady.url], {})
    with load(doors[0], expected) as of_jumping, load(doors[1], expected) as of_steady:
        for turn, seconds in enumerate(JUMPS):
            clock.jump(jumping, seconds)
            for users in (of_jumping, of_steady):
                users.more(100)
            # Whoever was first stored it for both; one from the other's future is made anew, never an error.
            for asked in (jumping, steady, jumping):
                answer = asked.query("shops", limit=60 + turn)
                assert answer.status_code == 200
                assert 0 <= int(answer.headers["age"]) <= HOUR + 60
        wait_until(lambda: jumping.get("/health/ready").json()["redis"] == "ok", what="Redis to be in use")
    judge(of_jumping, "of two replicas the one whose clock jumps")
    judge(of_steady, "of two replicas the other one")
