"""Windows, quotas and buckets, with a clock that the tests move."""

from __future__ import annotations

from typing import Any

import pytest
from bi_query import rate_limit
from bi_query.errors import ConfigurationError, RateLimited
from bi_query.metrics import Metrics
from bi_query.rate_limit import ClientLimiter, WindowStorage
from bi_query.settings import load_settings

ROUTE = "/api/v1/queries/{name}"


class Clock:
    """Stands in for the `time` module where the limiter reads it."""

    now = 1_000_000.0
    set_by = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + self.set_by


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(rate_limit, "time", made)
    return made


def limiter(**settings: Any) -> ClientLimiter:
    return ClientLimiter(load_settings(**settings), Metrics())


def allowed(
    made: ClientLimiter, client: str, route: str = ROUTE, most: int = 1000, own_limit: str | None = None
) -> int:
    """How many requests go through before the first refusal."""
    for count in range(most):
        try:
            made.spend(route, client, own_limit)
        except RateLimited:
            return count
    return most


def test_a_hundred_requests_a_minute_is_the_default(clock: Clock) -> None:
    made = limiter()
    assert allowed(made, "a") == 100
    clock.now += 59.9
    assert allowed(made, "a") == 0
    clock.now += 0.2
    assert allowed(made, "a") == 100


def test_a_quota_counts_down_and_a_refusal_says_when_to_come_back(clock: Clock) -> None:
    made = limiter(rate_limit="3/minute")
    remaining = [made.spend(ROUTE, "a") for _ in range(3)]
    assert [quota.remaining for quota in remaining] == [2, 1, 0]
    assert {quota.limit for quota in remaining} == {3}
    clock.now += 12.5
    with pytest.raises(RateLimited) as caught:
        made.spend(ROUTE, "a")
    assert caught.value.retry_after_seconds == 48
    assert caught.value.extra == {"limit": 3, "reset_seconds": 48}
    assert dict(caught.value.headers) == {
        b"ratelimit-limit": b"3",
        b"ratelimit-remaining": b"0",
        b"ratelimit-reset": b"48",
        b"ratelimit-policy": b"3;w=60",
    }


def test_waiting_as_long_as_told_is_enough(clock: Clock) -> None:
    made = limiter(rate_limit="1/minute")
    made.spend(ROUTE, "a")
    clock.now += 17.3
    with pytest.raises(RateLimited) as caught:
        made.spend(ROUTE, "a")
    clock.now += caught.value.retry_after_seconds or 0
    made.spend(ROUTE, "a")


def test_refused_requests_do_not_push_the_window_back(clock: Clock) -> None:
    made = limiter(rate_limit="1/minute")
    made.spend(ROUTE, "a")
    for _ in range(59):
        clock.now += 1
        assert allowed(made, "a") == 0
    clock.now += 1
    assert allowed(made, "a") == 1


def test_clients_and_routes_have_buckets_of_their_own(clock: Clock) -> None:
    made = limiter(rate_limit="2/minute")
    assert [allowed(made, client, route) for client in ("a", "b") for route in (ROUTE, "/api/v1/query")] == [2] * 4


def test_a_route_can_have_its_own_limit(clock: Clock) -> None:
    made = limiter(rate_limit="5/minute", rate_limit_routes={"/api/v1/query": "2/minute"})
    assert (allowed(made, "a", "/api/v1/query"), allowed(made, "a")) == (2, 5)


def test_a_client_s_own_limit_stands_in_for_that_of_all_routes_and_not_for_a_route_s_own(clock: Clock) -> None:
    made = limiter(rate_limit="2/minute", rate_limit_routes={"/api/v1/query": "3/minute"})
    assert allowed(made, "a", own_limit="5/minute") == 5
    assert allowed(made, "a", "/api/v1/query", own_limit="5/minute") == 3
    assert allowed(made, "b", "/api/v1/query", own_limit="1/minute") == 1


@pytest.mark.parametrize(
    ("own_limit", "told", "allowed_next"),
    [("9/hour", [(3, 2), (3, 1), (3, 0)], 3), ("4/hour", [(3, 2), (3, 1), (3, 0)], 1), ("3/minute", [(3, 2)], 2)],
)
def test_of_a_client_s_own_limit_and_a_route_s_the_one_nearest_its_end_is_told(
    clock: Clock, own_limit: str, told: list[tuple[int, int]], allowed_next: int
) -> None:
    made = limiter(rate_limit_routes={ROUTE: "3/minute"})
    quotas = [made.spend(ROUTE, "a", own_limit) for _ in told]
    assert [(quota.limit, quota.remaining) for quota in quotas] == told
    clock.now += 60 if len(told) == 3 else 0
    assert allowed(made, "a", own_limit=own_limit) == allowed_next


def test_of_several_limits_the_tightest_holds_and_is_shown(clock: Clock) -> None:
    made = limiter(rate_limit="2/second;3/minute")
    assert made.spend(ROUTE, "a").limit == 2
    assert allowed(made, "a") == 1
    clock.now += 1.1
    # The second window is new; of the minute's three requests, the refused one above was counted too.
    assert allowed(made, "a") <= 1


def test_a_refusal_is_counted_by_route() -> None:
    metrics = Metrics()
    made = ClientLimiter(load_settings(rate_limit="1/minute"), metrics)
    allowed(made, "a")
    assert metrics.registry.get_sample_value("bi_rate_limit_rejections_total", {"endpoint": ROUTE}) == 1


@pytest.mark.parametrize("text", ["", "100", "100/fortnight", "fast", "-1/minute", "1.5/minute"])
def test_a_limit_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="BI_RATE_LIMIT"):
        load_settings(rate_limit=text)


# --- the storage under it ---


def test_a_window_counts_until_it_ends_and_starts_again_at_one(clock: Clock) -> None:
    storage = WindowStorage()
    assert [storage.incr("k", 10) for _ in range(3)] == [1, 2, 3]
    assert (storage.get("k"), storage.get_expiry("k")) == (3, clock.now + 10)
    clock.now += 10
    assert storage.get("k") == 0
    assert storage.incr("k", 10) == 1
    assert storage.get_expiry("k") == clock.now + 10


def test_a_window_can_be_cleared(clock: Clock) -> None:
    storage = WindowStorage()
    storage.incr("k", 10)
    storage.incr("l", 10)
    storage.clear("k")
    assert (storage.get("k"), storage.get("l")) == (0, 1)
    storage.reset()
    assert (storage.get("l"), storage.check()) == (0, True)


@pytest.mark.parametrize("jump", [-3600.0, 3600.0], ids=["set back", "set forward"])
def test_a_clock_that_jumps_leaves_windows_as_long_as_they_were(clock: Clock, jump: float) -> None:
    made = limiter(rate_limit="2/minute")
    assert allowed(made, "a") == 2
    clock.set_by = jump
    with pytest.raises(RateLimited) as refused:
        made.spend(ROUTE, "a")
    assert refused.value.retry_after_seconds == 60
    clock.now += 60
    assert allowed(made, "a") == 2


def test_a_flood_of_clients_stays_within_bounds_in_windows_and_in_what_is_unshared(clock: Clock) -> None:
    storage = WindowStorage(max_buckets=100)
    for i in range(10_000):
        storage.incr(f"client-{i}", 60)
        assert len(storage.windows) <= 100
        assert len(storage.dirty) <= 101
    assert storage.get("client-9999") == 1


def test_room_is_made_of_ended_windows_first(clock: Clock) -> None:
    storage = WindowStorage(max_buckets=10)
    storage.incr("lasting", 3600)
    for i in range(9):
        storage.incr(f"brief-{i}", 1)
    clock.now += 2
    storage.incr("new", 60)
    assert set(storage.windows) == {"lasting", "new"}
