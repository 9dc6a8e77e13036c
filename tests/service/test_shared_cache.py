"""Two services and one real Redis (the stack's image where it can be had): what they share and what they never mix up."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from bi_query.entries import CacheKey, Entry, make_etag
from bi_query.metrics import Metrics
from bi_query.redis_tier import Lease, RedisTier
from bi_query.settings import load_settings

from tests.support.cache_room import (
    ENDLESS_SIZE,
    SLOW_SIZE,
    Pair,
    echoed,
    label_text,
    make_room,
    result_of,
    serving,
    together,
)
from tests.support.redis_server import RedisServer, redis_running
from tests.support.service import Service, wait_until
from tests.support.small import Small

EVERYTHING = {"pattern": "*"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return make_room(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def one_redis() -> Iterator[RedisServer]:
    with redis_running(container=True) as server:
        yield server


@pytest.fixture(scope="module")
def one_pair(small: Small, one_redis: RedisServer) -> Iterator[Pair]:
    settings = {
        "redis_url": one_redis.url,
        "max_connections": 400,
        "queue_timeout_seconds": 60,
        "redis_timeout_seconds": 2,
    }
    with serving(small, **settings) as a, serving(small, **settings) as b:
        yield Pair(a, b, one_redis, small)


@pytest.fixture
def redis(one_redis: RedisServer) -> RedisServer:
    one_redis.reset()
    return one_redis


@pytest.fixture
def pair(one_pair: Pair, redis: RedisServer) -> Pair:
    """Both services with nothing cached, each hearing the other."""
    for service in (one_pair.a, one_pair.b):
        wait_until(lambda service=service: service.get("/health/ready").json()["redis"] == "ok", what="redis")  # type: ignore[misc]
    wait_until(lambda: one_pair.redis.client.pubsub_numsub("bi:invalidate")[0][1] == 2, what="both to listen")
    for service in (one_pair.a, one_pair.b):
        service.client.delete("/api/v1/cache", params=EVERYTHING)
    wait_until(lambda: one_pair.total("bi_cache_entries") == 0, what="empty memory tiers")
    return one_pair


def forget(service: Service, **given: str) -> httpx.Response:
    return service.client.delete("/api/v1/cache", params=given)


def stored(pair: Pair, query: str, count: int = 1) -> None:
    """Answers go to Redis behind the response's back: wait for them."""
    wait_until(lambda: len(pair.entries(query)) == count, what=lambda: f"{count} in {pair.redis.client.keys('*')}")


def test_what_one_computed_the_other_takes_from_redis(pair: Pair) -> None:
    first = pair.a.query("shops", limit=3)
    stored(pair, "shops")
    second, third = pair.b.query("shops", limit=3), pair.b.query("shops", limit=3)
    assert [result_of(first), result_of(second), result_of(third)] == [
        ("miss", "engine"),
        ("hit", "redis"),
        ("hit", "memory"),
    ]
    assert first.content == second.content == third.content
    assert first.headers["etag"] == second.headers["etag"]


def test_redis_lets_an_answer_go_when_it_may_not_be_served_any_more(pair: Pair) -> None:
    assert result_of(pair.a.query("brief")) == ("miss", "engine")
    # It is stored behind the response's back, and lives for a second: seen, or come and gone between two looks.
    come_and_gone = time.monotonic() + 2
    wait_until(lambda: pair.entries("brief") or time.monotonic() > come_and_gone, what="the entry")
    wait_until(lambda: not pair.entries("brief"), what="the entry to expire")
    assert result_of(pair.b.query("brief")) == ("miss", "engine")
    pair.a.query("shops")
    stored(pair, "shops")
    assert 6000 < pair.redis.client.ttl(pair.entries("shops")[0]) <= 7200


def test_a_stale_answer_of_redis_is_served_and_refreshed(pair: Pair) -> None:
    pair.a.query("quick")
    stored(pair, "quick")
    time_at_b = wait_until(lambda: stale_or_none(pair), what="the entry to become stale")
    assert time_at_b == ("stale", "redis")
    wait_until(lambda: result_of(pair.b.query("quick"))[0] == "hit", what="the refresh it started")


def stale_or_none(pair: Pair) -> tuple[str, str] | None:
    """Ask B, which must not have it in memory, once A's copy is stale."""
    if result_of(pair.a.query("shops"))[0] == "miss" or pair.redis.client.pttl(pair.entries("quick")[0]) > 59_900:
        return None
    return result_of(pair.b.query("quick"))


def test_concurrent_misses_at_both_run_once_in_all(pair: Pair) -> None:
    before = pair.total("bi_engine_queries_total", outcome="ok")
    answers = together(60, lambda n: (pair.a, pair.b)[n % 2].query("slow", size=SLOW_SIZE))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert pair.total("bi_engine_queries_total", outcome="ok") == before + 1


def test_when_the_computing_process_is_killed_the_other_computes(pair: Pair) -> None:
    settings = {"catalogue_dir": pair.small.catalogue, "redis_url": pair.redis.url}
    with serving(pair.small, **settings) as doomed:

        def ask(number: int) -> httpx.Response | None:
            if number == 0:
                with pytest.raises(httpx.HTTPError):
                    doomed.query("slow", size=SLOW_SIZE + 5)
                return None
            wait_until(lambda: doomed.metric("bi_engine_running_queries") == 1, what="the holder to compute")
            wait_until(lambda: pair.redis.client.keys("bi:lock:*"), what="its lease")
            if number == 1:
                return pair.b.query("slow", size=SLOW_SIZE + 5)
            wait_until(lambda: pair.b.metric("http_requests_in_progress") >= 2, what="the other to wait for it")
            assert pair.b.metric("bi_engine_running_queries") == 0
            doomed.process.kill()
            return None

        answer = together(3, ask)[1]
    assert answer is not None
    assert result_of(answer) == ("miss", "engine")


def test_a_lease_is_renewed_while_its_holder_computes_and_given_back_when_nobody_waits(pair: Pair) -> None:
    def left_ms() -> int:
        [name] = pair.redis.client.keys("bi:lock:*slow*")
        return int(pair.redis.client.pttl(name))

    with socket.create_connection(("127.0.0.1", pair.a.port), 30) as client:
        client.sendall(f"GET /api/v1/queries/slow?size={ENDLESS_SIZE} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        for _ in range(2):
            wait_until(lambda: 0 < left_ms() < 2500, what="a part of the lease to pass")
            wait_until(lambda: left_ms() > 2500, what="the lease to be renewed")
    wait_until(lambda: not pair.redis.client.keys("bi:lock:*"), what="the lease to be given back")
    assert not pair.entries("slow")


def test_a_waiting_process_whose_holder_fails_tries_itself(pair: Pair) -> None:
    sql = "select ('broken' || count(*))::integer from range(9000) a(i), range(9000) b(j) where (i + j) % 7 = 3"
    answers = together(8, lambda n: (pair.a, pair.b)[n % 2].sql(sql))
    assert {answer.status_code for answer in answers} == {422}
    assert not pair.entries("ad_hoc")
    wait_until(lambda: not pair.redis.client.keys("bi:lock:*"), what="the leases to be given back")


def asked_of(redis: RedisServer) -> dict[str, int]:
    """How often each kind of command was run, those within scripts too."""
    found: dict[str, dict[str, int]] = redis.client.info("commandstats")
    return {name.removeprefix("cmdstat_"): counts["calls"] for name, counts in found.items()}


def test_a_miss_asks_redis_twice(pair: Pair) -> None:
    pair.redis.client.config_resetstat()
    echoed(pair.a.query("echo", text="counted"))
    stored(pair, "echo")
    wait_until(lambda: not pair.redis.client.keys("bi:lock:*"), what="the lease to be given back")
    asked = asked_of(pair.redis)
    assert (asked["eval"], asked["get"]) == (2, 4)  # these four are the scripts' own


def test_a_store_that_redis_refuses_gives_the_lease_back(pair: Pair) -> None:
    def full_while_it_computes(number: int) -> httpx.Response | None:
        if number == 0:
            return pair.a.query("slow", size=SLOW_SIZE + 2)
        wait_until(lambda: pair.redis.client.keys("bi:lock:*"), what="the lease")
        pair.redis.client.config_set("maxmemory", 1)
        return None

    pair.redis.client.config_resetstat()
    try:
        answer = together(2, full_while_it_computes)[0]
        assert answer is not None
        assert result_of(answer) == ("miss", "engine")
        wait_until(lambda: asked_of(pair.redis).get("del") == 1, what="the lease to be given back")
        assert not pair.entries("slow")
    finally:
        pair.redis.client.config_set("maxmemory", 0)


def test_redis_lost_between_lease_and_store_costs_the_answer_nothing(pair: Pair) -> None:
    def gone_while_it_computes(number: int) -> httpx.Response | None:
        if number == 0:
            return pair.a.query("slow", size=SLOW_SIZE + 3)
        wait_until(lambda: pair.redis.client.keys("bi:lock:*"), what="the lease")
        pair.redis.kill()
        return None

    answer = together(2, gone_while_it_computes)[0]
    assert answer is not None
    assert result_of(answer) == ("miss", "engine")
    assert result_of(pair.a.query("slow", size=SLOW_SIZE + 3)) == ("hit", "memory")
    pair.redis.start()
    for service in (pair.a, pair.b):
        wait_until(lambda service=service: service.get("/health/ready").json()["redis"] == "ok", 40, what="redis")  # type: ignore[misc]
    assert result_of(pair.b.query("echo", text="back")) == ("miss", "engine")
    stored(pair, "echo")


@pytest.mark.parametrize("given", [{"query": "echo"}, {"pattern": "echo/*"}, {"pattern": "*/text=a?/json"}])
def test_an_invalidation_reaches_both_memory_tiers_and_redis(pair: Pair, given: dict[str, str]) -> None:
    for service in (pair.a, pair.b):
        for text in ("a1", "a2"):
            echoed(service.query("echo", text=text))
            stored(pair, "echo", 1 if (service, text) == (pair.a, "a1") else 2)
        service.query("shops")
    stored(pair, "shops")
    before = pair.b.metric("bi_cache_invalidations_total", scope="remote")
    answer = forget(pair.a, **given).json()
    assert (answer["invalidated"], answer["redis"]) == ({"memory": 2, "redis": 2}, "done")
    assert not pair.entries("echo")
    wait_until(lambda: pair.b.metric("bi_cache_invalidations_total", scope="remote") == before + 1, what="the message")
    assert result_of(pair.b.query("echo", text="a1")) == ("miss", "engine")
    assert result_of(pair.a.query("echo", text="a2")) == ("miss", "engine")
    for service in (pair.a, pair.b):
        assert result_of(service.query("shops")) == ("hit", "memory")


@pytest.mark.parametrize("special", ["[", "]", "?", "*", "\\", "^", "[a]", "é", "🛒"])
def test_a_glob_means_the_same_in_memory_and_in_redis(pair: Pair, special: str) -> None:
    texts = (f"a{special}b", "aab", "ab", "a:b")
    for text in texts:
        assert echoed(pair.a.query("echo", text=text)) == text
    stored(pair, "echo", len(texts))
    exact = forget(pair.a, pattern=f"echo/text=a{label_text(special)}b/*").json()
    assert exact["invalidated"] == {"memory": 1, "redis": 1}
    assert forget(pair.a, pattern=f"echo/text=a{special}b").json()["invalidated"] == {"memory": 0, "redis": 0}
    assert forget(pair.a, pattern="*:b/json").json()["invalidated"] == {"memory": 0, "redis": 0}
    assert forget(pair.a, pattern="*/text=a%3?b/json").json()["invalidated"] == {"memory": 1, "redis": 1}


def test_an_answer_computed_before_an_invalidation_elsewhere_is_not_stored_after_it(pair: Pair) -> None:
    def ask(number: int) -> httpx.Response | None:
        if number == 0:
            return pair.a.query("slow", size=SLOW_SIZE + 1)
        wait_until(lambda: pair.a.metric("bi_engine_running_queries") == 1, what="the query to run")
        forget(pair.b, query="slow")
        return None

    answer = together(2, ask)[0]
    assert answer is not None
    assert result_of(answer) == ("miss", "engine")
    wait_until(lambda: not pair.redis.client.keys("bi:lock:*"), what="the lease to be given back")
    assert not pair.entries("slow")
    assert pair.a.metric("bi_cache_entries") == 0


@pytest.mark.parametrize("crash", [False, True], ids=["paused", "restarted"])
def test_an_invalidation_while_redis_is_away_is_pending_and_done_on_return(pair: Pair, crash: bool) -> None:
    for service in (pair.a, pair.b):
        echoed(service.query("echo", text="old"))
        stored(pair, "echo")
    before = pair.b.metric("bi_cache_invalidations_total", scope="remote")
    pair.redis.kill() if crash else pair.redis.pause()
    answer = forget(pair.a, query="echo").json()
    assert (answer["invalidated"], answer["redis"]) == ({"memory": 1, "redis": None}, "pending")
    assert result_of(pair.a.query("echo", text="old")) == ("miss", "engine")
    pair.redis.start() if crash else pair.redis.resume()
    wait_until(lambda: not pair.entries("echo"), what="the entries to go")
    if not crash:
        wait_until(lambda: pair.b.metric("bi_cache_invalidations_total", scope="remote") > before, what="the message")
    wait_until(lambda: pair.b.metric("bi_cache_entries") == 0, what="the other memory tier to forget")
    assert pair.total("bi_cache_redis_errors_total") > 0


def test_a_process_that_may_have_missed_messages_forgets_what_it_holds(pair: Pair) -> None:
    for service in (pair.a, pair.b):
        echoed(service.query("echo", text="held"))
    assert pair.b.metric("bi_cache_entries") == 1
    pair.redis.kill()
    pair.redis.start()
    wait_until(lambda: pair.total("bi_cache_entries") == 0, what="both memory tiers to be empty")


def test_a_flushed_redis_costs_a_computation_and_nothing_else(pair: Pair) -> None:
    echoed(pair.a.query("echo", text="flushed"))
    stored(pair, "echo")
    pair.redis.client.flushall()
    assert result_of(pair.a.query("echo", text="flushed")) == ("hit", "memory")
    assert result_of(pair.b.query("echo", text="flushed")) == ("miss", "engine")
    stored(pair, "echo")


def test_two_hundred_different_misses_at_once_are_all_answered_rightly(pair: Pair) -> None:
    answers = together(200, lambda n: pair.a.query("echo", text=f"crowd-{n}"))
    assert [echoed(answer) for answer in answers] == [f"crowd-{n}" for n in range(200)]
    again = together(200, lambda n: pair.b.query("echo", text=f"crowd-{n}"))
    assert [echoed(answer) for answer in again] == [f"crowd-{n}" for n in range(200)]


@pytest.mark.parametrize("text", ["São Paulo 🛒", "x" * 401, "y" * 2000], ids=["unicode", "401", "2000"])
def test_unusual_texts_are_shared_too(pair: Pair, text: str) -> None:
    assert echoed(pair.a.query("echo", text=text)) == text
    stored(pair, "echo")
    answer = pair.b.query("echo", text=text)
    assert (echoed(answer), result_of(answer)) == (text, ("hit", "redis"))


def test_formats_and_parameters_are_entries_of_their_own(pair: Pair) -> None:
    kinds = [(limit, fmt) for limit in (1, 2) for fmt in ("json", "csv", "arrow", "parquet")]
    bodies = [pair.a.query("shops", limit=limit, format=fmt).content for limit, fmt in kinds]
    stored(pair, "shops", len(kinds))
    answers = [pair.b.query("shops", limit=limit, format=fmt) for limit, fmt in kinds]
    assert [answer.content for answer in answers] == bodies
    assert {result_of(answer) for answer in answers} == {("hit", "redis")}


def test_a_second_publish_leaves_no_old_answer_on_either(redis: RedisServer, tmp_path: Path) -> None:
    small = make_room(tmp_path)
    settings = {"redis_url": redis.url, "snapshot_poll_seconds": 0.1}
    with serving(small, **settings) as a, serving(small, **settings) as b:
        for service in (a, b, a, b):
            assert service.query("shops").json()["rows"][0][2] == 1
        old = a.query("shops").headers["x-data-version"]
        small.publish(version=2)

        def consistent(service: Service) -> bool:
            answer = service.query("shops")
            swapped = answer.headers["x-data-version"] != old
            assert answer.json()["rows"][0][2] == (2 if swapped else 1), "an answer of the other snapshot"
            return swapped

        for service in (a, b):
            wait_until(lambda service=service: consistent(service), what="the swap")  # type: ignore[misc]
        for service in (a, b) * 10:
            assert consistent(service)


def test_a_changed_query_text_is_another_key(redis: RedisServer, tmp_path: Path) -> None:
    small = make_room(tmp_path)
    path = small.catalogue / "queries" / "echo.sql"
    with serving(small, redis_url=redis.url) as before:
        assert echoed(before.query("echo", text="same")) == "same"
        path.write_text(path.read_text().replace("select $text as text", "select upper($text) as text"))
        with serving(small, redis_url=redis.url) as after:
            assert echoed(after.query("echo", text="same")) == "SAME"
        assert echoed(before.query("echo", text="same")) == "same"


def test_the_password_is_read_from_a_file_and_never_shown(small: Small, tmp_path: Path) -> None:
    (tmp_path / "right").write_text("corr:ect h@rse/\n")
    (tmp_path / "wrong").write_text("battery staple")
    with redis_running(password="corr:ect h@rse/") as redis:
        right = {"redis_url": redis.url, "redis_password_file": tmp_path / "right"}
        with serving(small, **right) as a, serving(small, **right) as b:
            assert echoed(a.query("echo", text="secret")) == "secret"
            wait_until(lambda: redis.client.keys("bi:entry:*"), what="the entry")
            assert result_of(b.query("echo", text="secret")) == ("hit", "redis")
        with serving(small, redis_url=redis.url, redis_password_file=tmp_path / "wrong", log_level="debug") as c:
            assert result_of(c.query("echo", text="secret")) == ("miss", "engine")
            wait_until(lambda: c.metric("bi_cache_redis_circuit_open") == 1, what="the circuit to open")
            said = c.errors() + (c.folder / "out.log").read_text() + c.get("/metrics").text
            assert "battery staple" not in said


# --- the tier itself, where a service cannot be stopped between two commands


def with_tiers(redis: RedisServer, scenario: Callable[[RedisTier, RedisTier], Awaitable[None]]) -> None:
    async def run() -> None:
        settings = load_settings(redis_url=redis.url, redis_timeout_seconds=5.0)
        one, other = (RedisTier(settings, Metrics(), lambda _: None) for _ in range(2))
        try:
            await scenario(one, other)
        finally:
            await one.close()
            await other.close()

    asyncio.run(run())


KEY = CacheKey("snap", "all", "shops", "limit=1", "json", "d")


def an_entry(key: CacheKey = KEY, raw: bytes = b"old") -> Entry:
    now = time.time()
    return Entry(key.query, key.label, now, now + 60, now + 90, make_etag(raw), 1, False, 0.1, False, raw)


def test_an_answer_whose_lease_is_older_than_an_invalidation_is_refused_by_redis(redis: RedisServer) -> None:
    async def scenario(holder: RedisTier, other: RedisTier) -> None:
        lease = await holder.lock(KEY, "token", 3000)
        assert isinstance(lease, Lease)
        await other.invalidate("something-else/*")
        await holder.set(KEY, an_entry(), lease.epoch)
        assert await other.get(KEY) is None
        epoch = await holder.epoch()
        assert epoch is not None
        await holder.set(KEY, an_entry(), epoch)
        assert await other.get(KEY) == (await holder.get(KEY)) != None  # noqa: E711 - an entry, the same

    with_tiers(redis, scenario)


def test_a_lease_belongs_to_its_token(redis: RedisServer) -> None:
    async def scenario(one: RedisTier, other: RedisTier) -> None:
        assert isinstance(await one.lock(KEY, "one", 3000), Lease)
        assert await other.lock(KEY, "other", 3000) == "taken"
        await other.unlock(KEY, "other")
        assert await other.is_locked(KEY)
        before = redis.client.pttl("bi:lock:" + KEY.text)
        await other.renew(KEY, "other", 60_000)
        assert redis.client.pttl("bi:lock:" + KEY.text) <= before
        await one.renew(KEY, "one", 60_000)
        assert redis.client.pttl("bi:lock:" + KEY.text) > 50_000
        await one.unlock(KEY, "one")
        assert not await other.is_locked(KEY)

    with_tiers(redis, scenario)


def test_one_command_gives_the_entry_or_else_the_lease(redis: RedisServer) -> None:
    async def scenario(one: RedisTier, other: RedisTier) -> None:
        lease = await one.get_or_lock(KEY, "one", 3000)
        assert isinstance(lease, Lease)
        assert await other.get_or_lock(KEY, "other", 3000) == "none"
        assert redis.client.get("bi:lock:" + KEY.text) == b"one"
        assert await one.set(KEY, an_entry(), lease.epoch, lease.token)
        assert await other.get_or_lock(KEY, "other", 3000) == await one.get(KEY) != None  # noqa: E711 - an entry, the same
        assert not redis.client.keys("bi:lock:*")

    with_tiers(redis, scenario)


def test_storing_gives_back_no_lease_but_its_own_and_stores_none_that_was_invalidated(redis: RedisServer) -> None:
    async def scenario(one: RedisTier, other: RedisTier) -> None:
        lease = await one.get_or_lock(KEY, "one", 3000)
        assert isinstance(lease, Lease)
        redis.client.set("bi:lock:" + KEY.text, b"other")  # the lease ended, and another process has one now
        await other.invalidate("*")
        assert await one.set(KEY, an_entry(), lease.epoch, lease.token)
        assert redis.client.get("bi:lock:" + KEY.text) == b"other"
        assert await one.get(KEY) is None
        assert await one.set(KEY, an_entry(), lease.epoch, "other")
        assert await one.get(KEY) is None
        assert not redis.client.keys("bi:lock:*")

    with_tiers(redis, scenario)


def test_what_a_pending_invalidation_names_is_not_read_from_redis(redis: RedisServer) -> None:
    async def scenario(tier: RedisTier, other: RedisTier) -> None:
        epoch = await other.epoch()
        assert epoch is not None
        await other.set(KEY, an_entry(), epoch)
        redis.client.rename("bi:entry:" + KEY.text, "kept")
        for _ in range(3):  # a key of another kind where the epoch belongs: every invalidation fails
            redis.client.rpush("bi:entry:" + KEY.text, "not a string")
            await tier.get(KEY)
        assert not tier.is_available
        assert await tier.invalidate("shops/*") is None
        redis.client.rename("kept", "bi:entry:" + KEY.text)
        assert await other.get(KEY) is not None
        async with asyncio.timeout(20):
            while not tier.is_available:
                await tier._link.probe()
                await asyncio.sleep(0.01)
            assert await other.get(KEY) is not None
            assert await tier.get(KEY) is None
            tending = asyncio.ensure_future(tier.tend())
            while await other.get(KEY) is not None:  # noqa: ASYNC110 - Redis has no event to wait for
                await asyncio.sleep(0.01)
        tending.cancel()

    with_tiers(redis, scenario)


def test_replies_are_never_mixed_up_though_callers_leave_at_any_moment(redis: RedisServer) -> None:
    """The classic: a cancelled command leaves its reply on the connection for the next to read."""
    keys = [CacheKey("snap", "all", "echo", f"text={n}", "json", "d") for n in range(50)]

    async def scenario(tier: RedisTier, other: RedisTier) -> None:
        epoch = await tier.epoch()
        assert epoch is not None
        await asyncio.gather(*(tier.set(key, an_entry(key, key.text.encode()), epoch) for key in keys))
        answered = 0

        async def ask(number: int) -> None:
            nonlocal answered
            key = keys[number % len(keys)]
            async with asyncio.timeout(None if number % 2 else 0.0005 * (number % 97)):
                entry = await tier.get(key)
            assert entry is not None
            assert entry.raw() == key.text.encode()
            answered += 1

        for _ in range(20):
            outcomes = await asyncio.gather(*(ask(number) for number in range(200)), return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {type(None), TimeoutError}
            assert set(outcomes[1::2]) == {None}
        for number in range(len(keys)):
            entry = await tier.get(keys[number])
            assert entry is not None
            assert entry.raw() == keys[number].text.encode()
        assert 2000 <= answered < 4000
        assert tier._metrics.registry.get_sample_value("bi_cache_redis_errors_total", {"operation": "get"}) == 0
        assert not tier._link.client.connection_pool._in_use_connections

    with_tiers(redis, scenario)
