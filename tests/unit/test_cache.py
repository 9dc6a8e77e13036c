"""The cache without Redis, on a clock the tests turn: freshness, single flight, invalidation. And the circuit breaker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import bi_query.cache
import bi_query.invalidation
import pytest
from bi_query.cache import Cache, Served
from bi_query.catalogue import Freshness
from bi_query.circuit import CircuitBreaker
from bi_query.engine_call import Answer
from bi_query.entries import CacheKey, pack
from bi_query.errors import Overloaded
from bi_query.formats import Encoded
from bi_query.metrics import Metrics
from bi_query.settings import load_settings

HOUR = Freshness(fresh_seconds=3600, stale_seconds=600)
KEY = CacheKey("snap", "all", "shops", "limit=1", "json", "d")
OTHER = CacheKey("snap", "all", "stores", "limit=1", "json", "d")


class Clock:
    """Stands in for the `time` module."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


class Query:
    """A computation the test can hold, fail and count."""

    def __init__(self, size: int = 10) -> None:
        self.runs = self.cancelled = 0
        self.size = size
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> Answer:
        self.runs += 1
        run = self.runs
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        body = f"{run}".encode().ljust(self.size)
        return Answer(Encoded(body, 1, False, 0.25), pack(body), 0.0, 0.5)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bi_query.cache, "time", clock)
    monkeypatch.setattr(bi_query.invalidation, "time", clock)
    return clock


def make(**settings: object) -> tuple[Cache, Metrics]:
    metrics = Metrics()
    return Cache(load_settings(**settings), metrics), metrics


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def test_an_answer_from_before_the_clock_was_set_back_is_not_kept_fresh_that_much_longer(clock: Clock) -> None:
    async def scenario() -> None:
        cache, _ = make()
        query = Query()
        clock.ahead = 3600
        assert (await cache.fetch(KEY, HOUR, query)).result == "miss"
        assert (await cache.fetch(KEY, HOUR, query)).result == "hit"
        clock.ahead = 0
        assert cache.fresh_in_memory(KEY) is None
        assert (await cache.fetch(KEY, HOUR, query)).result == "miss"
        assert (await cache.fetch(KEY, HOUR, query)).result == "hit"
        clock.ahead = -1  # as far as the clocks of two replicas are apart
        assert (await cache.fetch(KEY, HOUR, query)).result == "hit"

    run(scenario)


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0)


def text(served: Served) -> str:
    return served.entry.raw().decode().strip()


def test_a_miss_then_hits_then_expiry(clock: Clock) -> None:
    async def scenario() -> None:
        (cache, metrics), query = make(), Query()
        no_stale = Freshness(fresh_seconds=3600, stale_seconds=0)
        first = await cache.fetch(KEY, no_stale, query)
        second = await cache.fetch(KEY, no_stale, query)
        assert cache.fresh_in_memory(KEY) is second.entry
        clock.ahead = 3601
        assert cache.fresh_in_memory(KEY) is None
        third = await cache.fetch(KEY, no_stale, query)
        assert [(s.result, s.tier, text(s)) for s in (first, second, third)] == [
            ("miss", "none", "1"),
            ("hit", "memory", "1"),
            ("miss", "none", "2"),
        ]
        labels = {"query": "shops", "result": "hit", "tier": "memory"}
        assert metrics.registry.get_sample_value("bi_cache_requests_total", labels) == 2
        assert metrics.registry.get_sample_value("bi_cache_saved_seconds_total", {"query": "shops"}) == 1.5

    run(scenario)


def test_stale_is_served_at_once_while_one_refresh_runs(clock: Clock) -> None:
    async def scenario() -> None:
        (cache, _), query = make(), Query()
        await cache.fetch(KEY, HOUR, query)
        clock.ahead = 3601
        query.gate.clear()
        served = [await cache.fetch(KEY, HOUR, query) for _ in range(20)]
        assert {(s.result, s.tier, text(s)) for s in served} == {("stale", "memory", "1")}
        await until(lambda: query.runs == 2)
        query.gate.set()
        await until(lambda: cache.fresh_in_memory(KEY) is not None)
        assert text(await cache.fetch(KEY, HOUR, query)) == "2"
        assert query.runs == 2

    run(scenario)


def test_stale_is_never_served_beyond_its_end_though_refreshes_fail(clock: Clock) -> None:
    async def scenario() -> None:
        (cache, _), query = make(), Query()
        await cache.fetch(KEY, HOUR, query)
        query.error = RuntimeError("engine")
        for seconds in range(3601, 3600 + 600 - 360, 20):  # jitter may have taken up to 360 s off
            clock.ahead = seconds
            assert (await cache.fetch(KEY, HOUR, query)).result == "stale"
            await asyncio.sleep(0.001)
        clock.ahead = 3600 + 601
        with pytest.raises(RuntimeError, match="engine"):
            await cache.fetch(KEY, HOUR, query)

    run(scenario)


def test_a_failed_refresh_is_tried_again_but_not_at_every_request(clock: Clock) -> None:
    async def scenario() -> None:
        (cache, _), query = make(), Query()
        await cache.fetch(KEY, HOUR, query)
        query.error = RuntimeError("engine")
        clock.ahead = 3601
        for _ in range(200):
            assert (await cache.fetch(KEY, HOUR, query)).result == "stale"
            await asyncio.sleep(0.001)
        assert query.runs == 2
        clock.ahead += 6
        query.error = None
        assert (await cache.fetch(KEY, HOUR, query)).result == "stale"
        await until(lambda: cache.fresh_in_memory(KEY) is not None)
        assert query.runs == 3

    run(scenario)


def test_jitter_only_ever_shortens() -> None:
    async def scenario() -> None:
        cache, _ = make()
        for number in range(300):
            key = CacheKey("snap", "all", "shops", f"limit={number}", "json", "d")
            entry = (await cache.fetch(key, HOUR, Query())).entry
            assert 3240 <= entry.fresh_until - entry.created_at <= 3600
            assert entry.stale_until - entry.fresh_until == pytest.approx(600)

    run(scenario)


def test_concurrent_misses_run_once_and_share_the_answer() -> None:
    async def scenario() -> None:
        (cache, _), query = make(), Query()
        query.gate.clear()
        tasks = [asyncio.ensure_future(cache.fetch(KEY, HOUR, query)) for _ in range(100)]
        await until(lambda: query.runs == 1)
        query.gate.set()
        served = await asyncio.gather(*tasks)
        assert sorted(s.result for s in served) == ["coalesced"] * 99 + ["miss"]
        assert query.runs == 1

    run(scenario)


def test_waiters_share_one_error_and_the_next_request_tries_again() -> None:
    async def scenario() -> None:
        (cache, _), query = make(), Query()
        query.error = RuntimeError("engine")
        query.gate.clear()
        tasks = [asyncio.ensure_future(cache.fetch(KEY, HOUR, query)) for _ in range(10)]
        await until(lambda: query.runs == 1)
        query.gate.set()
        assert {repr(r) for r in await asyncio.gather(*tasks, return_exceptions=True)} == {"RuntimeError('engine')"}
        query.error = None
        assert (await cache.fetch(KEY, HOUR, query)).result == "miss"
        assert query.runs == 2

    run(scenario)


def test_who_waits_for_an_answer_that_its_first_asker_has_no_room_for_has_it_computed_for_itself() -> None:
    async def scenario() -> None:
        (cache, _), anas, others = make(), Query(), Query()
        anas.error = Overloaded("unsent_full", "not read", retry_after_seconds=1)
        anas.gate.clear()
        ana = asyncio.ensure_future(cache.fetch(KEY, HOUR, anas))
        await until(lambda: anas.runs == 1)
        waiting = [asyncio.ensure_future(cache.fetch(KEY, HOUR, others)) for _ in range(5)]
        await asyncio.sleep(0.01)
        anas.gate.set()
        with pytest.raises(Overloaded):
            await ana
        assert sorted(served.result for served in await asyncio.gather(*waiting)) == ["coalesced"] * 4 + ["miss"]
        assert (anas.runs, others.runs) == (1, 1)

    run(scenario)


def test_the_last_waiter_that_leaves_cancels_the_query_and_one_of_two_does_not() -> None:
    async def scenario() -> None:
        (cache, _), query = make(), Query()
        query.gate.clear()
        first, second = (asyncio.ensure_future(cache.fetch(KEY, HOUR, query)) for _ in range(2))
        await until(lambda: query.runs == 1)
        first.cancel()
        await asyncio.wait({first})
        await asyncio.sleep(0.01)
        assert query.cancelled == 0
        second.cancel()
        await asyncio.wait({second})
        await until(lambda: query.cancelled == 1)
        third = asyncio.ensure_future(cache.fetch(KEY, HOUR, query))
        await until(lambda: query.runs == 2)
        query.gate.set()
        assert (await third).result == "miss"

    run(scenario)


def test_a_refresh_goes_on_when_those_it_serves_leave(clock: Clock) -> None:
    async def scenario() -> None:
        (cache, _), query = make(), Query()
        await cache.fetch(KEY, HOUR, query)
        clock.ahead = 3601
        query.gate.clear()
        await cache.fetch(KEY, HOUR, query)
        await until(lambda: query.runs == 2)
        clock.ahead = 3600 + 601
        waiter = asyncio.ensure_future(cache.fetch(KEY, HOUR, query))
        await asyncio.sleep(0.01)
        waiter.cancel()
        await asyncio.wait({waiter})
        query.gate.set()
        await until(lambda: cache.fresh_in_memory(KEY) is not None)
        assert (query.runs, query.cancelled) == (2, 0)

    run(scenario)


def test_an_answer_begun_before_an_invalidation_is_neither_stored_nor_joined_after_it() -> None:
    async def scenario() -> None:
        (cache, metrics), query, unrelated = make(), Query(), Query()
        query.gate.clear()
        unrelated.gate.clear()
        early = asyncio.ensure_future(cache.fetch(KEY, HOUR, query))
        bystander = asyncio.ensure_future(cache.fetch(OTHER, HOUR, unrelated))
        await until(lambda: query.runs == unrelated.runs == 1)
        assert await cache.invalidate("shops/*", "query") == (0, None)
        late = asyncio.ensure_future(cache.fetch(KEY, HOUR, query))
        await until(lambda: query.runs == 2)
        query.gate.set()
        unrelated.gate.set()
        assert (text(await early), (await early).result) == ("1", "miss")
        assert (text(await late), (await late).result) == ("2", "miss")
        await bystander
        assert text(await cache.fetch(KEY, HOUR, query)) == "2"
        assert cache.fresh_in_memory(OTHER) is not None
        assert metrics.registry.get_sample_value("bi_cache_invalidations_total", {"scope": "query"}) == 1

    run(scenario)


def test_an_answer_that_ends_after_an_invalidation_is_not_kept() -> None:
    async def scenario() -> None:
        (cache, metrics), query = make(), Query()
        query.gate.clear()
        early = asyncio.ensure_future(cache.fetch(KEY, HOUR, query))
        await until(lambda: query.runs == 1)
        await cache.invalidate("shops/*", "query")
        query.gate.set()
        assert text(await early) == "1"
        assert cache.fresh_in_memory(KEY) is None
        assert not metrics.registry.get_sample_value("bi_cache_entries")

    run(scenario)


def test_invalidation_forgets_by_name_and_by_glob() -> None:
    async def scenario() -> None:
        cache, _ = make()
        for pattern, forgotten in (("shops/*", KEY), ("*/limit=?/json", OTHER), ("st*", OTHER)):
            for key in (KEY, OTHER):
                await cache.fetch(key, HOUR, Query())
            await cache.invalidate(pattern, "pattern")
            assert cache.fresh_in_memory(forgotten) is None

    run(scenario)


def test_no_cache_computes_anew_and_stores_what_it_found() -> None:
    async def scenario() -> None:
        (cache, _), query = make(), Query()
        await cache.fetch(KEY, HOUR, query)
        served = await cache.fetch(KEY, HOUR, query, bypass=True)
        assert (served.result, text(served)) == ("bypass", "2")
        assert text(await cache.fetch(KEY, HOUR, query)) == "2"

    run(scenario)


def test_an_answer_that_is_never_fresh_is_not_stored() -> None:
    async def scenario() -> None:
        (cache, metrics), query = make(), Query()
        for _ in range(3):
            assert (await cache.fetch(KEY, Freshness(fresh_seconds=0, stale_seconds=0), query)).result == "miss"
        assert query.runs == 3
        assert metrics.registry.get_sample_value("bi_cache_entries") == 0

    run(scenario)


def test_an_entry_over_the_cap_is_answered_counted_and_not_stored() -> None:
    async def scenario() -> None:
        (cache, metrics), query = make(cache_entry_max_bytes=1024), Query(size=2000)
        for _ in range(2):
            assert (await cache.fetch(KEY, HOUR, query)).result == "miss"
        assert metrics.registry.get_sample_value("bi_cache_rejected_entries_total") == 2
        compressible = Query(size=1_000_000)  # the cap is on what is stored
        await cache.fetch(OTHER, HOUR, compressible)
        assert (await cache.fetch(OTHER, HOUR, compressible)).result == "hit"

    run(scenario)


class Breaker:
    """A circuit breaker on a clock of the test's own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.metrics = Metrics()
        self.it = CircuitBreaker(self.metrics.cache_redis_circuit_open, lambda: self.now)

    @property
    def gauge(self) -> float | None:
        return self.metrics.registry.get_sample_value("bi_cache_redis_circuit_open")

    def open(self) -> None:
        for _ in range(3):
            self.it.failed()


def test_the_circuit_opens_after_three_failures_in_a_row_only() -> None:
    breaker = Breaker()
    for _ in range(10):
        breaker.it.failed()
        breaker.it.failed()
        breaker.it.succeeded()
    assert breaker.it.allows()
    assert breaker.gauge == 0
    breaker.open()
    assert not breaker.it.allows()
    assert breaker.gauge == 1


def test_an_open_circuit_lets_one_caller_at_a_time_probe() -> None:
    breaker = Breaker()
    breaker.open()
    breaker.now = 0.7
    assert [breaker.it.allows() for _ in range(50)] == [True] + [False] * 49
    breaker.it.succeeded()
    assert [breaker.it.allows() for _ in range(3)] == [True] * 3
    assert breaker.gauge == 0


def test_a_probe_that_never_reports_does_not_keep_the_circuit_open_for_ever() -> None:
    breaker = Breaker()
    breaker.open()
    breaker.now = 0.7
    assert breaker.it.allows()
    breaker.now = 1.3
    assert breaker.it.allows()


def test_many_callers_failing_together_do_not_lengthen_the_wait() -> None:
    breaker = Breaker()
    for _ in range(200):
        breaker.it.failed()
    breaker.now = 0.35  # those whose time-out comes later
    for _ in range(200):
        breaker.it.failed()
    breaker.now = 0.61  # half a second and its spread
    assert breaker.it.allows()


def test_each_failed_probe_doubles_the_wait_up_to_a_bound() -> None:
    breaker = Breaker()
    breaker.open()
    waits = []
    for _ in range(10):
        began = breaker.now
        while not breaker.it.allows():
            breaker.now += 0.01
        waits.append(breaker.now - began)
        breaker.it.failed()
    assert waits == sorted(waits[:5]) + waits[5:]
    assert waits[0] < 0.65
    assert all(11.9 <= wait <= 18.1 for wait in waits[6:])
