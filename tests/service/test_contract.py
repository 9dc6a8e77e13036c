"""The HTTP contract: every route, every header, every error in its one shape. Over HTTP, on a real service."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from pyarrow import ipc, parquet

from tests.support.service import Service, running, wait_until
from tests.support.small import QUERIES, Small, make_small

MEDIA = {
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for the tests that only ask."""
    small = make_small(tmp_path_factory.mktemp("small"))
    small.publish()
    with running(small.snapshots, catalogue_dir=small.catalogue) as service:
        yield service


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The one shape of a refusal."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    document: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "code", "detail", "request_id"} <= document.keys()
    assert (document["status"], document["code"]) == (status, code)
    assert document["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    return document


# --- routes ---


def test_the_catalogue_lists_every_query_with_its_parameters_and_freshness(shared: Service) -> None:
    listed = {query["name"]: query for query in shared.get("/api/v1/queries").json()["queries"]}
    assert listed.keys() == QUERIES.keys()
    assert [parameter["name"] for parameter in listed["shops"]["parameters"]] == ["limit", "shop"]
    assert listed["shops"]["parameters"][0] == {
        "name": "limit",
        "type": "integer",
        "required": False,
        "default": 10,
        "description": "How many.",
        "minimum": 1,
        "maximum": 100,
    }
    assert "3600" in str(listed["shops"]["freshness"])


def test_a_named_query_answers_in_the_documented_shape(shared: Service) -> None:
    document = shared.query("shops", limit=2).json()
    assert document == {
        "columns": [
            {"name": "shop", "type": "VARCHAR"},
            {"name": "amount", "type": "HUGEINT"},
            {"name": "version", "type": "INTEGER"},
        ],
        "rows": [["west", 125_250, 1], ["east", 125_000, 1]],
        "row_count": 2,
        "truncated": False,
    }


def test_ad_hoc_sql_answers_with_bound_parameters(shared: Service) -> None:
    hostile = "north'; drop table sales; --"
    answer = shared.sql("SELECT $shop AS shop, count(*) AS n FROM sales WHERE shop = $shop", {"shop": hostile})
    assert answer.json()["rows"] == [[hostile, 0]]
    assert shared.sql("SELECT count(*) FROM sales WHERE shop = $s", {"s": "north"}).json()["rows"] == [[250]]


@pytest.mark.parametrize("value", [1, -(2**63), 2**63 - 1, 2**64 - 1, 1.5, True, False, None, "", "é🦆", "a'b"])
def test_each_kind_of_parameter_comes_back_as_it_went(shared: Service, value: Any) -> None:
    found = shared.sql("SELECT $v AS v", {"v": value}).json()["rows"][0][0]
    assert found == (str(value) if isinstance(value, int) and abs(value) > 2**53 else value)


def test_parameters_of_different_types_are_different_questions(shared: Service) -> None:
    values = [1, 1.0, True, "1", None, "null", "", 0, False, -0.0]
    types = [shared.sql("SELECT typeof($v) AS t, $v::VARCHAR AS v", {"v": value}).json()["rows"][0] for value in values]
    assert [kind for kind, _ in types[:5]] == ["INTEGER", "DOUBLE", "BOOLEAN", "VARCHAR", '"NULL"']
    assert [value for _, value in types] == ["1", "1.0", "true", "1", None, "null", "", "0", "false", "-0.0"]


def test_tables_lists_relations_with_columns_rows_and_the_snapshot(shared: Service) -> None:
    answer = shared.get("/api/v1/tables")
    document = answer.json()
    tables = {table["name"]: table for table in document["tables"]}
    assert tables.keys() == {"sales", "versions", "sales_by_shop"}
    assert tables["sales"]["rows"] == 1000
    assert [column["name"] for column in tables["sales"]["columns"]] == ["shop", "amount", "day"]
    assert document["snapshot_id"] == answer.headers["x-data-version"]
    assert parsedate_to_datetime(document["published_at"]).tzinfo is not None


def test_invalidation_by_name_and_by_glob_says_how_much(serve: Callable[..., Service]) -> None:
    service = serve()
    for limit in (1, 2):
        for fmt in ("json", "csv"):
            service.query("shops", limit=limit, format=fmt)
    service.query("quick")
    service.sql("SELECT 1")

    def forget(**chosen: str) -> Any:
        return service.client.delete("/api/v1/cache", params=chosen).json()

    assert forget(pattern="shops/*limit=1*/json") == {
        "pattern": "shops/*limit=1*/json",
        "invalidated": {"memory": 1, "redis": None},
        "redis": "off",
    }
    assert forget(query="shops")["invalidated"]["memory"] == 3
    assert forget(query="ad_hoc")["invalidated"]["memory"] == 1
    assert forget(pattern="*")["invalidated"]["memory"] == 1
    assert service.query("shops", limit=1).headers["x-cache"] == "miss"


def test_health_tells_living_from_ready(shared: Service) -> None:
    assert shared.get("/health/live").json() == {"status": "ok"}
    ready = shared.get("/health/ready").json()
    assert (ready["status"], ready["redis"]) == ("ok", "off")
    assert ready["snapshot_id"] == shared.get("/api/v1/tables").json()["snapshot_id"]


def test_without_a_usable_snapshot_it_lives_but_is_not_ready_and_says_when_to_come_back(small: Small) -> None:
    for file in small.snapshots.glob("*.duckdb"):
        file.chmod(0o644)
        file.write_bytes(b"not a database")
    with tempfile.TemporaryDirectory() as folder:
        service = Service(small.snapshots, Path(folder), catalogue_dir=small.catalogue)
        try:
            wait_until(lambda: service.get("/health/live").status_code == 200, 60, what="a living service")
            for answer in (
                service.get("/health/ready"),
                service.query("shops"),
                service.sql("SELECT 1"),
                service.get("/api/v1/tables"),
            ):
                assert_problem(answer, 503, "no_snapshot")
                assert int(answer.headers["retry-after"]) >= 1
            assert service.get("/api/v1/queries").status_code == 200
            small.publish(version=2)
            wait_until(lambda: service.query("shops").status_code == 200, what="the next publish to be served")
        finally:
            service.stop()


@pytest.mark.parametrize(
    "path", ["/api/v1/queries", "/api/v1/queries/shops", "/api/v1/tables", "/health/live", "/health/ready", "/metrics",
             "/docs", "/openapi.json"]
)  # fmt: skip
def test_head_is_get_without_a_body(shared: Service, path: str) -> None:
    got, head = shared.get(path), shared.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":
        assert head.headers["content-length"] == str(len(got.content))


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/api/v1/queries", "GET"),
        ("POST", "/api/v1/queries/shops", "GET"),
        ("DELETE", "/api/v1/queries/shops", "GET"),
        ("GET", "/api/v1/query", "POST"),
        ("PUT", "/api/v1/query", "POST"),
        ("OPTIONS", "/api/v1/query", "POST"),
        ("GET", "/api/v1/cache", "DELETE"),
        ("POST", "/api/v1/tables", "GET"),
        ("POST", "/health/live", "GET"),
        ("POST", "/metrics", "GET"),
        ("POST", "/docs", "GET"),
        ("PATCH", "/openapi.json", "GET"),
    ],
)
def test_a_wrong_method_names_the_right_one(shared: Service, method: str, path: str, allow: str) -> None:
    answer = shared.client.request(method, path)
    assert_problem(answer, 405, "method_not_allowed")
    assert allow in answer.headers["allow"]


@pytest.mark.parametrize(
    "path",
    ["/", "/api", "/api/v1", "/api/v1/queries/", "/api/v1/queries/shops/", "/api/v1/queries/a/b", "/api/v1/tables/",
     "/docs/", "/API/v1/queries", "//api/v1/queries", "/api/v1/queries/a%2Fb", "/..%2f..%2fetc/passwd", "/metrics%00",
     "/favicon.ico", "/redoc", "/docs/oauth2-redirect", "/" + "x" * 5000],
)  # fmt: skip
def test_an_unknown_path_is_a_problem_and_never_a_redirect(shared: Service, path: str) -> None:
    assert_problem(shared.get(path), 404, "not_found")


@pytest.mark.parametrize("name", ["nope", "Shops", "shops%20", "shops.sql", "%00", "%F0%9F%A6%86", "%ff", "x" * 5000])
def test_an_unknown_query_is_a_problem(shared: Service, name: str) -> None:
    document = assert_problem(shared.get(f"/api/v1/queries/{name}"), 404, "unknown_query")
    assert len(document["detail"]) < 300


def test_a_query_that_runs_too_long_is_stopped_with_504(shared: Service) -> None:
    with running(Path(shared_snapshots(shared)), query_timeout_seconds=0.3) as service:
        answer = service.sql("SELECT count(*) FROM range(1000000) a(i), range(1000000) b(j) WHERE (i + j) % 7 = 3")
        assert_problem(answer, 504, "query_timeout")


def shared_snapshots(service: Service) -> str:
    arguments = Path(f"/proc/{service.process.pid}/environ").read_bytes().split(b"\0")
    return next(a.decode().partition("=")[2] for a in arguments if a.startswith(b"BI_SNAPSHOT_DIR="))


# --- headers ---


def test_x_cache_tells_miss_hit_and_bypass_and_age_counts(serve: Callable[..., Service]) -> None:
    service = serve()
    first, second = service.query("shops"), service.query("shops")
    assert [first.headers["x-cache"], second.headers["x-cache"]] == ["miss", "hit"]
    assert first.headers["age"] == "0"
    wait_until(lambda: int(service.query("shops").headers["age"]) >= 1, what="the age to grow")
    for asked in ("no-cache", "No-Cache", "max-age=0, no-cache", "no-store"):
        again = service.query("shops", {"Cache-Control": asked})
        assert (again.headers["x-cache"], again.headers["age"]) == ("bypass", "0")
    assert service.query("shops").headers["x-cache"] == "hit"
    assert service.sql("SELECT 41 + 1").headers["x-cache"] == "miss"
    assert service.sql("SELECT 41 + 1").headers["x-cache"] == "hit"
    assert service.sql("SELECT 41 + 1", Cache_Control="no-cache").headers["x-cache"] == "bypass"
    assert {service.query("uncached").headers["x-cache"] for _ in range(3)} == {"miss"}


def test_within_its_stale_time_an_old_answer_is_served_and_refreshed(serve: Callable[..., Service]) -> None:
    service = serve()
    service.query("quick")
    seen: list[str] = []

    def stale_was_seen() -> bool:
        seen.append(service.query("quick").headers["x-cache"])
        return "stale" in seen

    wait_until(stale_was_seen, what="a stale answer")
    assert set(seen) == {"hit", "stale"}
    wait_until(lambda: service.query("quick").headers["x-cache"] == "hit", what="a refreshed answer")


@pytest.mark.parametrize("fmt", MEDIA)
def test_etags_are_of_the_bytes_and_answer_304(shared: Service, fmt: str) -> None:
    answer = shared.query("shops", format=fmt)
    tag = answer.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]+"', tag)
    for condition in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        unchanged = shared.query("shops", {"If-None-Match": condition}, format=fmt)
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["etag"] == tag
        assert unchanged.headers["x-data-version"] == answer.headers["x-data-version"]
    for condition in ('"other"', tag.strip('"'), "", "W/"):
        assert shared.query("shops", {"If-None-Match": condition}, format=fmt).content == answer.content


def test_each_format_has_its_own_tag(shared: Service) -> None:
    assert len({shared.query("shops", format=fmt).headers["etag"] for fmt in MEDIA}) == len(MEDIA)


def test_cache_control_tells_a_client_how_long_the_answer_is_fresh(shared: Service) -> None:
    control = shared.query("shops").headers["cache-control"]
    match = re.fullmatch(r"private, max-age=(\d+), stale-while-revalidate=3600", control)
    assert match
    assert 3000 < int(match[1]) <= 3600
    assert shared.query("uncached").headers["cache-control"].startswith("private, max-age=0")
    assert "Accept" in shared.query("shops").headers["vary"]
    for path in ("/api/v1/queries", "/api/v1/tables", "/health/ready"):
        assert shared.get(path).headers["cache-control"] == "no-store"


def test_server_timing_tells_where_the_time_went(shared: Service) -> None:
    fresh = shared.query("shops", {"Cache-Control": "no-cache"}).headers["server-timing"]
    assert re.fullmatch(r"queue;dur=[\d.]+, engine;dur=[\d.]+, encode;dur=[\d.]+", fresh)
    shared.query("shops")
    assert shared.query("shops").headers["server-timing"] == "cache;desc=memory"


def test_the_data_version_is_the_snapshot(shared: Service) -> None:
    snapshot = shared.get("/api/v1/tables").json()["snapshot_id"]
    assert shared.query("shops").headers["x-data-version"] == snapshot
    assert shared.sql("SELECT 1").headers["x-data-version"] == snapshot


@pytest.mark.parametrize("sent", ["abc", "A.b_c-9", "x" * 64, "0"])
def test_a_clients_request_id_is_kept(shared: Service, sent: str) -> None:
    for path in ("/api/v1/queries/shops", "/nope", "/health/live"):
        assert shared.get(path, headers={"X-Request-ID": sent}).headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", [None, "", "x" * 65, "a b", 'a"b', "a\tb", "{}", "é", "a;b"])
def test_any_other_request_id_is_replaced_by_a_new_one(shared: Service, sent: str | None) -> None:
    headers = {} if sent is None else {"X-Request-ID": sent.encode()}
    made = [shared.get("/nope", headers=headers).headers["x-request-id"] for _ in range(2)]  # type: ignore[arg-type]
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in made)
    assert made[0] != made[1]


# --- formats ---


@pytest.mark.parametrize(
    ("accept", "fmt"),
    [
        (None, "json"),
        ("*/*", "json"),
        ("application/json", "json"),
        ("text/csv", "csv"),
        ("application/vnd.apache.arrow.stream", "arrow"),
        ("application/vnd.apache.parquet", "parquet"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", "json"),
        ("application/json;q=0.1, application/vnd.apache.parquet;q=0.9, text/csv;q=0.5", "parquet"),
        ("application/json;q=0, text/*", "csv"),
    ],
)
def test_accept_decides_the_format(shared: Service, accept: str | None, fmt: str) -> None:
    for answer in (
        shared.query("shops", {"Accept": accept} if accept else None),
        shared.sql("SELECT 1 AS one", **({"Accept": accept} if accept else {})),
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"] == MEDIA[fmt]


@pytest.mark.parametrize("fmt", MEDIA)
def test_the_format_parameter_decides_before_accept_and_all_formats_agree(shared: Service, fmt: str) -> None:
    answer = shared.query("shops", {"Accept": "text/html"}, format=fmt)
    assert answer.headers["content-type"] == MEDIA[fmt]
    assert (answer.headers["x-row-count"], answer.headers["x-truncated"]) == ("4", "false")
    wanted = [[str(value) for value in row] for row in shared.query("shops").json()["rows"]]
    assert table(answer.content, fmt) == wanted


def table(body: bytes, fmt: str) -> list[list[str]]:
    if fmt == "csv":
        return [line.split(",") for line in body.decode().split("\r\n")[1:-1]]
    if fmt == "json":
        return [[str(value) for value in row] for row in json.loads(body)["rows"]]
    read = ipc.open_stream(body).read_all() if fmt == "arrow" else parquet.read_table(io.BytesIO(body))
    return [[str(value) for value in row.values()] for row in read.to_pylist()]


@pytest.mark.parametrize("fmt", MEDIA)
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_x_truncated_is_true_exactly_when_rows_are_missing(truncating: Service, fmt: str, beyond: int) -> None:
    answer = truncating.sql(f"SELECT i FROM range({10 + beyond}) t(i)", fmt=fmt)
    assert answer.headers["x-truncated"] == ("true" if beyond > 0 else "false")
    assert answer.headers["x-row-count"] == str(min(10, 10 + beyond)) == str(len(table(answer.content, fmt)))
    if fmt == "json":
        assert answer.json()["truncated"] is (beyond > 0)
        assert answer.json()["row_count"] == min(10, 10 + beyond)
    again = truncating.sql(f"SELECT i FROM range({10 + beyond}) t(i)", fmt=fmt)
    assert again.headers["x-cache"] == "hit"
    assert again.headers["x-truncated"] == answer.headers["x-truncated"]


@pytest.fixture(scope="module")
def truncating(shared: Service) -> Iterator[Service]:
    with running(Path(shared_snapshots(shared)), max_result_rows=10) as service:
        yield service


# --- documentation ---


def test_the_documentation_page_needs_no_internet(shared: Service) -> None:
    answer = shared.get("/docs")
    page = answer.text
    assert answer.headers["content-type"].startswith("text/html")
    assert "http://" not in page
    assert "https://" not in page
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", page)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    for tag in ("script", "style"):
        text = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        assert text
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy


def test_the_documentation_page_is_filled_from_the_openapi_document(shared: Service) -> None:
    assert 'fetch("openapi.json")' in shared.get("/docs").text
    paths = shared.get("/openapi.json").json()["paths"]
    assert {f"/api/v1/queries/{name}" for name in QUERIES} <= paths.keys()
