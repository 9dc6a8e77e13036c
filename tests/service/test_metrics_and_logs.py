"""What operators see: the brief's metrics with bounded labels, and one JSON line a request that gives nothing away."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from typing import Any

import bi_query.app  # noqa: F401  # every error class of the service is known then
from bi_query.errors import ProblemError
from bi_query.metrics import metric_names

from tests.support.service import Service, wait_until

NAMED = "/api/v1/queries/{name}"


def exposed(service: Service) -> str:
    return service.get("/metrics").text


def series(service: Service, name: str) -> list[dict[str, str]]:
    """The label sets of a metric."""
    found = re.findall(rf"^{name}(?:\{{(.*)\}})? \S+$", exposed(service), re.MULTILINE)
    return [dict(re.findall(r'(\w+)="([^"]*)"', labels)) for labels in found]


def subclasses(kind: type[ProblemError]) -> set[type[ProblemError]]:
    """The class and all that derive from it."""
    return {kind}.union(*(subclasses(inner) for inner in kind.__subclasses__()))


def request_lines(service: Service, wanted: int) -> list[dict[str, Any]]:
    """The request log once it has this many lines: it is written a moment after the answer."""
    wait_until(lambda: len(service.log_lines()) >= wanted, what=f"{wanted} log lines")
    return service.log_lines()


# --- metrics ---


def test_the_four_metrics_of_the_brief_have_exactly_their_labels(serve: Callable[..., Service]) -> None:
    service = serve()
    service.query("shops")
    text = exposed(service)
    assert "# TYPE http_requests_total counter" in text
    assert "# TYPE http_request_duration_seconds histogram" in text
    assert "# TYPE active_users gauge" in text
    assert "# TYPE llm_tokens_total counter" in text
    assert all(labels.keys() == {"method", "endpoint", "status"} for labels in series(service, "http_requests_total"))
    buckets = series(service, "http_request_duration_seconds_bucket")
    assert all(labels.keys() == {"endpoint", "le"} for labels in buckets)
    assert {labels["le"] for labels in buckets} >= {"2.0", "+Inf"}
    assert service.metric("http_requests_total", method="GET", endpoint=NAMED, status="200") == 1


def test_what_is_exposed_is_what_metric_names_promises(serve: Callable[..., Service]) -> None:
    service = serve(rate_limit="1/hour")
    service.query("shops")
    service.query("shops")
    service.sql("SELECT nonsense(")
    declared = metric_names()
    names = {line.partition("{")[0].partition(" ")[0] for line in exposed(service).splitlines() if line[:1] not in "#"}
    assert names <= declared
    # Families whose labels are not known before the first event expose no sample until then.
    types = set(re.findall(r"^# TYPE (\S+)", exposed(service), re.MULTILINE))
    assert {
        name for name in declared if not any(name.startswith(kind.removesuffix("_total")) for kind in types)
    } == set()


def test_the_endpoint_is_the_template_whatever_the_path_holds(serve: Callable[..., Service]) -> None:
    service = serve()
    for path in ("shops", "quick", "nope", "a%20b", "%F0%9F%A6%86"):
        service.get(f"/api/v1/queries/{path}?limit=3")
    assert service.metric("http_requests_total", endpoint=NAMED) == 5
    assert {labels["endpoint"] for labels in series(service, "http_requests_total")} <= {
        NAMED,
        "/api/v1/queries",
        "/api/v1/query",
        "/api/v1/chat",
        "/api/v1/tables",
        "/health/ready",
        "/metrics",
    }


def test_ten_thousand_unknown_paths_and_odd_methods_are_one_series_each(serve: Callable[..., Service]) -> None:
    service = serve()
    before = len(exposed(service).splitlines())
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        received = b""
        for start in range(0, 10_000, 100):
            connection.sendall(
                b"".join(b"HEAD /x%d/y?%d HTTP/1.1\r\nhost: x\r\n\r\n" % (i, i) for i in range(start, start + 100))
            )
            while received.count(b"HTTP/1.1 404") < start + 100:
                received += connection.recv(1 << 20)
    for method in ("PROPFIND", "REPORT", "MKCOL", "LOCK"):
        service.client.request(method, "/x")
    assert service.metric("http_requests_total", endpoint="unmatched", method="HEAD", status="404") == 10_000
    assert service.metric("http_requests_total", endpoint="unmatched", method="OTHER") == 4
    assert service.metric("http_requests_total", endpoint="unmatched") == 10_004
    added = len(exposed(service).splitlines()) - before
    assert added < 40  # two histograms (this and /metrics) and a few counters
    assert service.metric("active_users") <= 1


def test_the_time_of_a_failed_request_is_observed(serve: Callable[..., Service]) -> None:
    service = serve(query_timeout_seconds=0.5)
    answer = service.sql("SELECT count(*) FROM range(1000000) a(i), range(1000000) b(j) WHERE (i + j) % 7 = 3")
    assert answer.status_code == 504
    endpoint = "/api/v1/query"
    assert service.metric("http_requests_total", method="POST", endpoint=endpoint, status="504") == 1
    assert service.metric("http_request_duration_seconds_count", endpoint=endpoint) == 1
    assert service.metric("http_request_duration_seconds_sum", endpoint=endpoint) >= 0.5
    assert service.metric("bi_engine_queries_total", query="ad_hoc", outcome="timeout") == 1


def test_errors_that_never_happened_are_already_at_zero(serve: Callable[..., Service]) -> None:
    service = serve()
    ours = {str(kind.status) for kind in subclasses(ProblemError) if kind.status >= 500}
    assert ours == {"500", "503", "504"}
    for method, endpoint in (
        ("GET", NAMED),
        ("POST", "/api/v1/query"),
        ("GET", "/api/v1/chat"),
        ("POST", "/api/v1/chat"),
    ):
        for status in {"200"} | ours:
            assert {"method": method, "endpoint": endpoint, "status": status} in series(service, "http_requests_total")
    assert {"query": "shops", "outcome": "error"} in series(service, "bi_engine_queries_total")
    assert {"reason": "queue_full"} in series(service, "bi_engine_rejections_total")


def test_active_users_counts_clients_not_requests(serve: Callable[..., Service]) -> None:
    service = serve()
    for key in ("a", "b", "a", "b", "a"):
        service.query("shops", {"X-API-Key": key})
    service.query("shops")
    service.get("/nope", headers={"X-API-Key": "scanner"})
    assert service.metric("active_users") == 3


def test_refusals_of_the_guard_are_counted_by_code(serve: Callable[..., Service]) -> None:
    service = serve()
    code = service.sql("DROP TABLE sales").json()["code"]
    assert service.metric("bi_guard_refusals_total", code=code) == 1


def test_openmetrics_is_offered_to_who_asks(serve: Callable[..., Service]) -> None:
    answer = serve().get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


# --- logs ---


def test_each_request_is_one_json_line_with_the_fields_operators_need(serve: Callable[..., Service]) -> None:
    service = serve()
    service.query("shops", {"X-Request-ID": "first", "X-API-Key": "k"})
    service.query("shops", {"X-Request-ID": "second"})
    service.query("shops", {"X-Request-ID": "third"}, limit="x")
    service.client.post("/api/v1/query", json={"sql": "DROP TABLE sales"}, headers={"X-Request-ID": "fourth"})
    service.get("/nope", headers={"X-Request-ID": "fifth"})
    lines = {line["request_id"]: line for line in request_lines(service, 5)}
    assert lines.keys() == {"first", "second", "third", "fourth", "fifth"}
    for line in lines.values():
        assert {"time", "level", "message", "client", "method", "endpoint", "status", "seconds", "bytes"} <= line.keys()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert line["seconds"] > 0
    first, second = lines["first"], lines["second"]
    assert first["query"] == second["query"] == "shops"
    assert (first["cache"], second["cache"], second["tier"]) == ("miss", "hit", "memory")
    assert {"queue_seconds", "engine_seconds", "encode_seconds"} <= first.keys()
    assert first["snapshot"] == service.get("/api/v1/tables").json()["snapshot_id"]
    assert first["client"].startswith("key-")
    assert second["client"] == "addr-127.0.0.1"
    assert (lines["third"]["status"], lines["third"]["code"]) == (400, "bad_parameter")
    assert (lines["fourth"]["status"], lines["fourth"]["query"]) == (422, "ad_hoc")
    assert (lines["fifth"]["status"], lines["fifth"]["endpoint"], lines["fifth"]["code"]) == (
        404,
        "unmatched",
        "not_found",
    )


def test_health_checks_and_scrapes_do_not_fill_the_log(serve: Callable[..., Service]) -> None:
    service = serve()
    for path in ("/health/live", "/health/ready", "/metrics"):
        service.get(path)
    service.query("shops")
    assert [line["endpoint"] for line in request_lines(service, 1)] == [NAMED]


def test_no_value_no_sql_and_no_key_reaches_any_log(serve: Callable[..., Service]) -> None:
    service = serve()
    canary = "cAnArY7391"
    service.query("shops", shop=canary)
    service.query("shops", {"X-API-Key": canary}, shop=canary * 20)
    service.query("shops", {"Authorization": f"Bearer {canary}"})
    service.query(canary)
    service.get(f"/{canary}?{canary}={canary}", headers={"Cookie": canary, "User-Agent": canary, "Referer": canary})
    service.sql(f"SELECT '{canary}' AS {canary}, $v", {"v": canary})
    service.sql(f"SELECT {canary} FROM {canary}")
    service.sql(f"SELECT CAST('{canary}' AS INTEGER)")
    service.sql(f"SELECT error('{canary}')")
    service.client.post("/api/v1/query", content=canary.encode())
    service.client.delete("/api/v1/cache", params={"pattern": canary})
    service.client.delete("/api/v1/cache", params={"query": canary})
    service.client.request(canary.upper(), "/")
    service.get("/nope", headers={"X-Request-ID": f"{canary} {canary}"})
    lines = request_lines(service, 13)
    assert canary.lower() not in json.dumps(lines).lower()
    assert canary.lower() not in service.errors().lower()
    assert canary.lower() not in exposed(service).lower()


def test_no_header_can_forge_a_line(serve: Callable[..., Service]) -> None:
    service = serve()
    forged = b'x", "status": 200}\n{"forged": true}'
    for name in (b"x-request-id", b"x-api-key", b"user-agent", b"x-forwarded-for", b"accept", b"if-none-match"):
        for value in (forged, forged.replace(b"\n", b"\r\n "), forged.replace(b"\n", b"\\n"), b"\xe2\x80\xa8forged"):
            head = (
                b"GET /api/v1/queries/shops HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                + name
                + b": "
                + value
                + b"\r\n\r\n"
            )
            with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
                connection.sendall(head)
                while connection.recv(65_536):
                    pass
    service.query("shops", {"X-Request-ID": "last"})
    wait_until(lambda: any(line["request_id"] == "last" for line in service.log_lines()), what="the last line")
    text = (service.folder / "out.log").read_text()
    assert "forged" not in text
    assert all("request_id" in line and "endpoint" in line for line in service.log_lines())
