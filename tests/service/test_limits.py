"""The rate limit over HTTP, alone and shared through a real Redis."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import pytest

from tests.service.test_contract import assert_problem
from tests.support.redis_server import RedisServer
from tests.support.service import Service, wait_until

# One window longer than any test: no test may depend on when a minute starts or how busy the machine is.
PER_HOUR = "5/hour"
LIMITED = [
    ("GET", "/api/v1/queries"),
    ("GET", "/api/v1/queries/shops"),
    ("POST", "/api/v1/query"),
    ("GET", "/api/v1/tables"),
    ("DELETE", "/api/v1/cache?query=shops"),
]


def ask(service: Service, method: str, path: str, **headers: str) -> httpx.Response:
    body = {"sql": "SELECT 1"} if method == "POST" else None
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return service.client.request(method, path, json=body, headers=named)


def allowed(service: Service, method: str, path: str, most: int = 20, **headers: str) -> int:
    """How many requests are answered before the first 429."""
    for count in range(most):
        if ask(service, method, path, **headers).status_code == 429:
            return count
    return most


def test_a_hundred_a_minute_is_the_default(serve: Callable[..., Service]) -> None:
    service = serve(rate_limit=None)
    answer = service.query("shops")
    assert answer.headers["ratelimit-policy"] == "100;w=60"
    assert answer.headers["ratelimit-limit"] == "100"
    statuses = {service.query("shops").status_code for _ in range(250)}  # more than two windows' worth
    assert statuses == {200, 429}


def test_every_route_of_the_api_is_really_limited_each_with_its_own_bucket(serve: Callable[..., Service]) -> None:
    service = serve(rate_limit=PER_HOUR)
    assert {path: allowed(service, method, path) for method, path in LIMITED} == {path: 5 for _, path in LIMITED}
    for method, path in LIMITED:
        answer = ask(service, method, path)
        document = assert_problem(answer, 429, "rate_limited")
        assert 0 < document["reset_seconds"] <= 3600
        assert answer.headers["retry-after"] == answer.headers["ratelimit-reset"] == str(document["reset_seconds"])
        assert answer.headers["ratelimit-remaining"] == "0"
        assert answer.headers["ratelimit-limit"] == "5"
        assert answer.headers["ratelimit-policy"] == "5;w=3600"


def test_all_values_of_a_path_share_one_bucket(serve: Callable[..., Service]) -> None:
    service = serve(rate_limit=PER_HOUR)
    paths = ["shops", "quick", "uncached", "shops?limit=3", "nope"]
    assert [service.get(f"/api/v1/queries/{path}").status_code for path in paths] == [200, 200, 200, 200, 404]
    for path in [*paths, "another", "quick?x=1"]:
        assert service.get(f"/api/v1/queries/{path}").status_code == 429


def test_hits_misses_and_refused_requests_all_count(serve: Callable[..., Service]) -> None:
    service = serve(rate_limit=PER_HOUR)
    remaining = [
        service.query("shops").headers["ratelimit-remaining"],
        service.query("shops").headers["ratelimit-remaining"],
        service.query("shops", limit="rubbish").headers["ratelimit-remaining"],
        service.query("nope").headers["ratelimit-remaining"],
        service.client.head("/api/v1/queries/shops").headers["ratelimit-remaining"],
    ]
    assert remaining == ["4", "3", "2", "1", "0"]


def test_each_key_and_each_address_has_a_bucket_of_its_own(serve: Callable[..., Service]) -> None:
    service = serve(rate_limit=PER_HOUR)
    path = "/api/v1/queries/shops"
    assert allowed(service, "GET", path, X_API_Key="one") == 5
    assert allowed(service, "GET", path, X_API_Key="two") == 5
    assert allowed(service, "GET", path, Authorization="Bearer two") == 0
    assert allowed(service, "GET", path) == 5


def test_a_forwarded_address_counts_only_from_a_trusted_proxy(serve: Callable[..., Service]) -> None:
    path = "/api/v1/queries/shops"
    stranger = serve(rate_limit=PER_HOUR)
    assert allowed(stranger, "GET", path, X_Forwarded_For="1.2.3.4") == 5
    assert allowed(stranger, "GET", path, X_Forwarded_For="5.6.7.8") == 0
    behind_proxy = serve(rate_limit=PER_HOUR, trusted_proxies="127.0.0.0/8, ::1/128")
    assert allowed(behind_proxy, "GET", path, X_Forwarded_For="1.2.3.4") == 5
    assert allowed(behind_proxy, "GET", path, X_Forwarded_For="5.6.7.8") == 5
    assert allowed(behind_proxy, "GET", path, X_Forwarded_For="6.6.6.6, 5.6.7.8") == 0
    assert allowed(behind_proxy, "GET", path) == 5


def test_a_route_can_have_its_own_limit(serve: Callable[..., Service]) -> None:
    service = serve(rate_limit=PER_HOUR, rate_limit_routes={"/api/v1/query": "2/hour"})
    assert allowed(service, "POST", "/api/v1/query") == 2
    assert allowed(service, "GET", "/api/v1/tables") == 5


def test_a_limit_for_a_route_that_does_not_exist_stops_the_start(serve: Callable[..., Service]) -> None:
    with pytest.raises(RuntimeError, match="BI_RATE_LIMIT_ROUTES"):
        serve(rate_limit_routes={"/api/v1/querys": "2/hour"})


def test_health_metrics_and_documentation_are_free(serve: Callable[..., Service]) -> None:
    service = serve(rate_limit="1/hour")
    for path in ("/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"):
        for _ in range(5):
            answer = service.get(path)
            assert answer.status_code == 200
            assert "ratelimit-limit" not in answer.headers


def test_refused_requests_are_counted_as_such_and_as_requests(serve: Callable[..., Service]) -> None:
    service = serve(rate_limit="1/hour")
    for _ in range(4):
        service.query("shops")
    endpoint = "/api/v1/queries/{name}"
    assert service.metric("bi_rate_limit_rejections_total", endpoint=endpoint) == 3
    assert service.metric("http_requests_total", method="GET", endpoint=endpoint, status="429") == 3
    assert service.metric("http_requests_total", method="GET", endpoint=endpoint, status="200") == 1
    assert service.metric("http_request_duration_seconds_count", endpoint=endpoint) == 4


def test_two_processes_share_one_limit_through_redis(serve: Callable[..., Service], redis_server: RedisServer) -> None:
    limit = 60
    one, two = (serve(rate_limit=f"{limit}/hour", redis_url=redis_server.url) for _ in range(2))
    for _ in range(limit // 2):
        assert one.query("shops").status_code == two.query("shops").status_code == 200
    # Each has counted half; once they have exchanged counts, a single request more is too much for both.
    wait_until(lambda: one.query("shops").status_code == 429, what="the first process to know of the second's requests")
    wait_until(lambda: two.query("shops").status_code == 429, what="the second process to know of the first's requests")


def test_without_redis_the_local_limit_holds_and_nothing_waits(
    serve: Callable[..., Service], redis_server: RedisServer
) -> None:
    service = serve(rate_limit="20/hour", redis_url=redis_server.url)
    path = "/api/v1/queries/shops"
    assert ask(service, "GET", path, X_API_Key="before").status_code == 200
    redis_server.kill()
    # The first requests may find Redis gone while it is asked for a cached answer; from then on nobody asks it.
    wait_until(lambda: service.get("/health/ready").json()["redis"] == "away" or service.sql("SELECT 1") is None)
    started = time.monotonic()
    assert allowed(service, "GET", path, most=40, X_API_Key="after") == 20
    assert time.monotonic() - started < 20
    wait_until(
        lambda: service.metric("bi_cache_redis_errors_total", operation="rate_limit") > 0,
        what="the error to be counted",
    )
    redis_server.start()
    other = serve(rate_limit="20/hour", redis_url=redis_server.url)

    def shared() -> int:
        return max((int(redis_server.client.get(key) or 0) for key in redis_server.client.keys("*rate:*")), default=0)

    ask(service, "GET", path, X_API_Key="after")
    wait_until(lambda: shared() >= 20, what="the counts to be shared again after Redis came back", within_seconds=60)
    # Far fewer requests than its own quota: only the counts of the first process can refuse them.
    for _ in range(10):
        before = shared()
        if ask(other, "GET", path, X_API_Key="after").status_code == 429:
            break
        wait_until(lambda before=before: shared() > before, what="the request to be shared")  # type: ignore[misc]
    else:
        raise AssertionError("ten requests went through: the counts of before are not shared")
