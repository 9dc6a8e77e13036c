"""The cache as clients of one service without Redis see it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.support.cache_room import (
    ENDLESS_SIZE,
    SLOW_SIZE,
    echoed,
    label_text,
    make_room,
    result_of,
    serving,
    together,
)
from tests.support.service import Service, wait_until
from tests.support.small import Small

TEXTS = ["São Paulo 🛒", "a&b=c", "100 %", "", "ümlaut/slash", "\u202eright to left", "x" * 400, "x" * 401, "y" * 2000]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return make_room(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def shared(small: Small) -> Iterator[Service]:
    with serving(small) as service:
        yield service


@pytest.fixture
def service(shared: Service) -> Service:
    shared.client.delete("/api/v1/cache", params={"pattern": "*"})
    return shared


def hang_up(service: Service, target: str) -> socket.socket:
    """A request whose client will not wait: close what this returns."""
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=10)
    connection.sendall(f"GET {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    return connection


def executions(service: Service, outcome: str = "ok") -> float:
    return service.metric("bi_engine_queries_total", outcome=outcome)


def test_a_miss_then_hits_that_say_so(service: Service) -> None:
    first, second = service.query("shops", limit=3), service.query("shops", limit=3)
    assert [result_of(first), result_of(second)] == [("miss", "engine"), ("hit", "memory")]
    assert first.content == second.content
    assert first.headers["etag"] == second.headers["etag"]
    assert int(second.headers["age"]) <= 60
    assert "max-age=3" in second.headers["cache-control"]


def test_a_client_that_holds_the_answer_gets_304_from_hit_and_miss_alike(service: Service) -> None:
    etag = service.query("shops", limit=4).headers["etag"]
    assert service.query("shops", {"if-none-match": etag}, limit=4).status_code == 304
    service.client.delete("/api/v1/cache", params={"query": "shops"})
    again = service.query("shops", {"if-none-match": f'"other", W/{etag}'}, limit=4)
    assert (again.status_code, again.content, again.headers["x-cache"]) == (304, b"", "miss")


def test_an_expired_answer_is_computed_anew(service: Service) -> None:
    assert result_of(service.query("brief")) == ("miss", "engine")
    wait_until(lambda: result_of(service.query("brief")) == ("miss", "engine"), what="the answer to expire")
    assert service.metric("bi_cache_requests_total", query="brief", result="stale") == 0


def test_a_stale_answer_is_served_while_it_is_refreshed(service: Service) -> None:
    before = executions(service)
    assert result_of(service.query("quick")) == ("miss", "engine")
    wait_until(lambda: result_of(service.query("quick")) == ("stale", "memory"), what="the answer to become stale")
    wait_until(lambda: result_of(service.query("quick")) == ("hit", "memory"), what="the refresh")
    assert executions(service) >= before + 2
    assert executions(service, "error") == 0


def test_concurrent_misses_run_once(service: Service) -> None:
    before = executions(service)
    answers = together(40, lambda _: service.query("slow", size=SLOW_SIZE))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert executions(service) == before + 1
    assert [answer.headers["x-cache"] for answer in answers].count("miss") == 1


def test_concurrent_misses_share_one_error_and_the_next_request_tries_again(service: Service) -> None:
    def broken(_: int) -> httpx.Response:
        sql = "select ('broken' || count(*))::integer from range(9000) a(i), range(9000) b(j) where (i + j) % 7 = 3"
        return service.sql(sql)

    answers = together(10, broken)
    assert {answer.status_code for answer in answers} == {422}
    failed = executions(service, "error")
    assert failed < 10
    assert broken(0).status_code == 422
    assert executions(service, "error") == failed + 1


def test_a_client_that_hangs_up_stops_its_query(service: Service) -> None:
    before = executions(service, "cancelled")
    connection = hang_up(service, f"/api/v1/queries/slow?size={ENDLESS_SIZE}")
    wait_until(lambda: service.metric("bi_engine_running_queries") == 1, what="the query to run")
    connection.close()
    wait_until(lambda: executions(service, "cancelled") == before + 1, 10, what="the query to be cancelled")
    assert service.metric("bi_engine_running_queries") == 0


def test_one_of_two_waiters_that_hangs_up_does_not_stop_the_query(service: Service) -> None:
    before = executions(service), executions(service, "cancelled")
    target = f"/api/v1/queries/slow?size={SLOW_SIZE + 1}"

    def ask(number: int) -> int:
        if number == 0:
            return service.get(target).status_code
        wait_until(lambda: service.metric("bi_engine_running_queries") == 1, what="the query to run")
        connection = hang_up(service, target)
        wait_until(lambda: service.metric("http_requests_in_progress") >= 3, what="both to wait")
        connection.close()
        return 0

    assert together(2, ask) == [200, 0]
    assert (executions(service), executions(service, "cancelled")) == (before[0] + 1, before[1])


def test_no_cache_asks_the_engine(service: Service) -> None:
    service.query("shops", limit=5)
    assert result_of(service.query("shops", {"cache-control": "no-cache"}, limit=5)) == ("bypass", "engine")
    assert result_of(service.query("shops", limit=5)) == ("hit", "memory")


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: f"{len(text)}-{text[:6]!a}")
def test_any_text_is_its_own_key(service: Service, text: str) -> None:
    assert [echoed(service.query("echo", text=text)) for _ in range(2)] == [text, text]
    assert result_of(service.query("echo", text=text)) == ("hit", "memory")
    assert result_of(service.query("echo", text=text + "!" if len(text) < 2000 else text[:-1])) == ("miss", "engine")


def test_formats_and_parameters_do_not_mix(service: Service) -> None:
    kinds = [(limit, fmt) for limit in (1, 2) for fmt in ("json", "csv", "arrow", "parquet")]
    bodies = [service.query("shops", limit=limit, format=fmt).content for limit, fmt in kinds]
    again = [service.query("shops", limit=limit, format=fmt) for limit, fmt in kinds]
    assert len(set(bodies)) == len(kinds)
    assert [answer.content for answer in again] == bodies
    assert {result_of(answer) for answer in again} == {("hit", "memory")}


def test_ad_hoc_sql_is_cached_by_text_and_values(service: Service) -> None:
    sql = "select $a as a, count(*) as n from sales"
    assert [result_of(service.sql(sql, {"a": a}))[0] for a in (1, 1, 2, "1")] == ["miss", "hit", "miss", "miss"]
    assert service.sql(sql, {"a": 2}).json()["rows"] == [[2, 1000]]


def test_a_large_answer_is_stored_smaller_than_it_is(service: Service) -> None:
    sql = "select i, 'the same words on every line' as words from range(20000) t(i)"
    first = service.sql(sql)
    assert result_of(first)[0] == "miss"
    assert service.metric("bi_cache_bytes") < len(first.content) / 3
    assert service.sql(sql).content == first.content


def test_invalidation_by_name_forgets_that_query_only(service: Service) -> None:
    for limit in (1, 2, 3):
        service.query("shops", limit=limit)
    echoed(service.query("echo", text="stays"))
    answer = service.client.delete("/api/v1/cache", params={"query": "shops"}).json()
    assert answer["invalidated"] == {"memory": 3, "redis": None}
    assert answer["redis"] == "off"
    assert result_of(service.query("shops", limit=1)) == ("miss", "engine")
    assert result_of(service.query("echo", text="stays")) == ("hit", "memory")


@pytest.mark.parametrize("special", ["[", "]", "?", "*", "\\", "^", "[a]", "[^a]", "a-z", "{a,b}"])
def test_glob_characters_in_a_value_stand_for_themselves(service: Service, special: str) -> None:
    for text in (f"a{special}b", "aab", "ab"):
        echoed(service.query("echo", text=text))
    pattern = f"echo/text=a{label_text(special)}b/*"
    answer = service.client.delete("/api/v1/cache", params={"pattern": pattern}).json()
    assert answer["invalidated"]["memory"] == 1
    assert result_of(service.query("echo", text=f"a{special}b")) == ("miss", "engine")
    assert result_of(service.query("echo", text="aab")) == ("hit", "memory")


@pytest.mark.parametrize(
    ("pattern", "forgotten"), [("echo/text=a?/*", 2), ("*", 3), ("echo/text=[ab]*", 0), ("echo", 0)]
)
def test_invalidation_by_glob(service: Service, pattern: str, forgotten: int) -> None:
    for text in ("aa", "ab", "b"):
        echoed(service.query("echo", text=text))
    answer = service.client.delete("/api/v1/cache", params={"pattern": pattern}).json()
    assert answer["invalidated"]["memory"] == forgotten


def test_a_hostile_glob_does_not_hold_up_the_service(service: Service) -> None:
    for number in range(20):
        echoed(service.query("echo", text="a" * 300 + str(number)))
    answer = service.client.delete("/api/v1/cache", params={"pattern": "*a" * 249 + "*b"}, timeout=10)
    assert answer.json()["invalidated"]["memory"] == 0


def test_filled_ten_times_over_the_memory_tier_keeps_to_its_bytes(small: Small) -> None:
    budget = 300_000
    with serving(small, cache_memory_bytes=budget) as service:
        for number in range(130):
            rows = "select md5(i::varchar) as a, md5((i * 7)::varchar) as b from range(600) t(i)"
            answer = service.sql(f"{rows} where i <> {number}")
            assert result_of(answer)[0] == "miss"
            assert service.metric("bi_cache_bytes") <= budget
        assert service.metric("bi_cache_max_bytes") == budget
        assert service.metric("bi_cache_evictions_total") >= 100
        assert service.metric("bi_cache_bytes") > budget / 2


def test_an_answer_over_the_entry_cap_is_served_and_counted(small: Small) -> None:
    with serving(small, cache_entry_max_bytes=2000) as service:
        sql = "select md5(i::varchar) as a from range(1000) t(i)"
        assert [result_of(service.sql(sql))[0] for _ in range(2)] == ["miss", "miss"]
        assert service.metric("bi_cache_rejected_entries_total") == 2


def test_a_second_publish_leaves_no_old_answer(tmp_path_factory: pytest.TempPathFactory) -> None:
    small = make_room(tmp_path_factory.mktemp("publish"))
    with serving(small, snapshot_poll_seconds=0.1) as service:
        assert service.query("shops").json()["rows"][0][2] == 1
        old = service.query("shops").headers["x-data-version"]
        small.publish(version=2)
        wait_until(lambda: service.query("shops").headers["x-data-version"] != old, what="the swap")
        for _ in range(20):
            assert service.query("shops").json()["rows"][0][2] == 2
