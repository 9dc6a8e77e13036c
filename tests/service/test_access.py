"""Keys, roles, row policies and the audit log, over HTTP."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.keys import cli, cli_keys
from tests.support.redis_server import RedisServer
from tests.support.service import Service, running, wait_until
from tests.support.small import Small, make_small

POLICIES = """
shop:
  attributes: {shop: text}
  rows:
    sales: shop = $shop
    sales_by_shop: shop = $shop
  shared: [versions]
broken:
  rows: {sales: no_such_column = 1}
"""
SECRET_MODEL = "select shop, 'x' || shop as word from sales_by_shop"
PAIRS = "/*---\ntitle: Qualified\nfreshness: steady\n---*/\nselect shop from main.sales_by_shop"


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Small:
    small = make_small(tmp_path_factory.mktemp("access"))
    (small.catalogue / "policies.yaml").write_text(POLICIES)
    (small.catalogue / "models" / "secret.sql").write_text(SECRET_MODEL)
    (small.catalogue / "queries" / "qualified.sql").write_text(PAIRS)
    small.publish()
    return small


@pytest.fixture(scope="module")
def keys_file(shops: Small) -> Path:
    return shops.root / "keys.json"


@pytest.fixture(scope="module")
def keys(shops: Small, keys_file: Path) -> dict[str, str]:
    return cli_keys(
        shops,
        keys_file,
        reader="",
        analyst="--role analyst",
        admin="--role admin",
        north="--role analyst --policy shop --attribute shop=north",
        south="--role analyst --policy shop --attribute shop=south",
        broken="--role analyst --policy broken",
        few="--rate-limit 2/hour",
    )


@pytest.fixture(scope="module")
def service(shops: Small, keys: dict[str, str], keys_file: Path) -> Iterator[Service]:
    audit = shops.root / "audit" / "audit.jsonl"
    with running(shops.snapshots, catalogue_dir=shops.catalogue, keys_file=keys_file, audit_log=audit) as service:
        yield service


def ask(service: Service, key: str | None, method: str, path: str, **options: Any) -> httpx.Response:
    return service.client.request(method, path, headers={"X-API-Key": key} if key else {}, **options)


def sql(service: Service, key: str, text: str) -> httpx.Response:
    return ask(service, key, "POST", "/api/v1/query", json={"sql": text})


ROUTES: list[tuple[str, str, dict[str, Any], str]] = [
    ("GET", "/api/v1/queries", {}, "reader"),
    ("GET", "/api/v1/queries/shops", {}, "reader"),
    ("GET", "/api/v1/tables", {}, "analyst"),
    ("POST", "/api/v1/query", {"json": {"sql": "select 1 as one"}}, "analyst"),
    ("DELETE", "/api/v1/cache?query=shops", {}, "admin"),
    ("GET", "/api/v1/publish", {}, "admin"),
]


@pytest.mark.parametrize(("method", "path", "options", "least"), ROUTES)
def test_a_route_asks_for_its_role_and_no_more(
    service: Service, keys: dict[str, str], method: str, path: str, options: dict[str, Any], least: str
) -> None:
    roles = ["reader", "analyst", "admin"]
    for role in roles:
        answer = ask(service, keys[role], method, path, **options)
        if roles.index(role) >= roles.index(least):
            assert answer.status_code == 200, answer.text
        else:
            assert (answer.status_code, answer.json()["code"]) == (403, "role_too_low")
            assert f"needs the role {least}" in answer.json()["detail"]


@pytest.mark.parametrize(("method", "path", "options", "least"), ROUTES)
def test_nobody_gets_in_without_a_key(
    service: Service, keys: dict[str, str], method: str, path: str, options: dict[str, Any], least: str
) -> None:
    stranger = keys["admin"][:-3] + "AAA"
    for key in (None, "", "admin", stranger, "bi_000000000000_" + "A" * 43):
        answer = ask(service, key, method, path, **options)
        assert answer.status_code == 401 and answer.json()["code"] == "unauthorized"
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_health_metrics_and_documentation_ask_for_no_key(service: Service) -> None:
    for path in ("/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"):
        assert service.get(path).status_code == 200, path


def test_a_bearer_token_is_a_key(service: Service, keys: dict[str, str]) -> None:
    answer = service.get("/api/v1/queries", headers={"Authorization": f"Bearer {keys['reader']}"})
    assert answer.status_code == 200


def test_guessing_keys_is_limited_by_address_counted_and_stops_no_good_key(
    shops: Small, keys: dict[str, str], keys_file: Path
) -> None:
    with running(shops.snapshots, catalogue_dir=shops.catalogue, keys_file=keys_file, rate_limit="5/minute") as limited:
        guesses = [ask(limited, f"bi_{i:012x}_" + "A" * 43, "GET", "/api/v1/queries").status_code for i in range(8)]
        assert guesses == [401] * 5 + [429] * 3
        assert ask(limited, keys["reader"], "GET", "/api/v1/queries").status_code == 200
        assert limited.metric("bi_auth_failures_total", reason="bad_key") == 5
        assert limited.metric("active_users") == 1, "who may not enter is no user"


def test_a_keys_own_limit_stands_in_for_the_services(service: Service, keys: dict[str, str]) -> None:
    answers = [ask(service, keys["few"], "GET", "/api/v1/queries") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].headers["RateLimit-Policy"] == "2;w=3600"


def test_a_made_and_a_revoked_key_take_effect_within_seconds_without_a_restart(
    service: Service, shops: Small, keys_file: Path
) -> None:
    key = cli(shops, keys_file, "add", "passing").stdout.strip()
    wait_until(
        lambda: ask(service, key, "GET", "/api/v1/queries").status_code == 200, 30, what="the new key to be accepted"
    )
    cli(shops, keys_file, "revoke", "passing")
    wait_until(
        lambda: ask(service, key, "GET", "/api/v1/queries").status_code == 401, 30, what="the revoked key to be refused"
    )


def test_the_list_shows_rights_and_no_key(shops: Small, keys: dict[str, str], keys_file: Path) -> None:
    listed = cli(shops, keys_file, "list").stdout
    assert "shop(shop=north)" in listed and "2/hour" in listed
    assert not [key for key in keys.values() if key in listed]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "x", "--policy", "none"), "no row policy 'none'; there are: shop, broken"),
        (("add", "x", "--policy", "shop"), "takes the attributes shop"),
        (("add", "x", "--policy", "shop", "--attribute", "store=1"), "once for each of shop"),
        (("add", "x", "--attribute", "shop=1"), "goes with --policy"),
        (("add", "x y"), "name"),
        (("add", "x", "--rate-limit", "lots"), "rate_limit"),
        (("add", "x", "--expires-days", "0"), "more than 0"),
        (("revoke", "nobody"), "no key with the id or name 'nobody'"),
    ],
)
def test_a_wrong_key_command_says_what_to_do(shops: Small, keys_file: Path, words: tuple[str, ...], said: str) -> None:
    done = cli(shops, keys_file, *words, check=False)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


def test_listening_beyond_this_machine_without_keys_is_refused(shops: Small) -> None:
    for host in ("0.0.0.0", "::"):
        done = subprocess.run(
            [sys.executable, "-m", "bi_query.cli", "serve"],
            env={**os.environ, "BI_HOST": host, "BI_PORT": "0", "BI_SNAPSHOT_DIR": str(shops.snapshots)},
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.returncode == 1 and "bi-query keys add" in done.stderr, done.stderr


def test_a_missing_key_file_stops_the_start(shops: Small, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bi_query.cli", "serve"],
        env={**os.environ, "BI_PORT": "0", "BI_SNAPSHOT_DIR": str(shops.snapshots), "BI_KEYS_FILE": str(tmp_path / "none")},
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1 and "there is no key file" in done.stderr, done.stderr


# --- Row policies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shop", ["north", "south"])
def test_a_policy_holds_for_named_queries_and_for_every_way_to_write_sql(
    service: Service, keys: dict[str, str], shop: str
) -> None:
    named = ask(service, keys[shop], "GET", "/api/v1/queries/shops").json()["rows"]
    assert [row[0] for row in named] == [shop]
    for text in (
        "select distinct shop from sales",
        'select distinct shop from "SALES"',
        "with x as (select * from sales) select distinct shop from x",
        "with sales as (select * from sales) select distinct shop from sales",
        "select shop from (select * from sales_by_shop)",
        "select distinct a.shop from sales a join sales b on true",
        "select distinct shop from sales where true or shop = 'east'",
        "select distinct shop from sales union select shop from sales_by_shop",
        "select distinct (select min(shop) from sales) from versions",
        "from sales select distinct shop",
        "select min(sales.shop) from sales",
        "select shop from sales_by_shop limit 10 offset 0",
        "with recursive r as (select min(shop) as s from sales union select r.s from r join sales on false) select s from r",
    ):
        answer = sql(service, keys[shop], text)
        assert answer.status_code == 200, (text, answer.text)
        assert answer.json()["rows"] == [[shop]], text
    [[count]] = sql(service, keys[shop], "select count(*) from sales").json()["rows"]
    assert count == 250


@pytest.mark.parametrize(
    "text",
    [
        "select * from secret",
        "select shop from main.sales",
        'select shop from "main"."sales_by_shop"',
        "select shop from memory.main.sales",
        "select x.shop from versions, main.sales x",
        "describe main.sales",
        "select * from sales, (from main.sales)",
        "with recursive r as (select 1 as a union select a from r, main.sales) select * from r",
    ],
)
def test_what_a_policy_does_not_list_or_shadow_cannot_be_named(
    service: Service, keys: dict[str, str], text: str
) -> None:
    answer = sql(service, keys["north"], text)
    assert answer.status_code == 422 and answer.json()["code"] in ("unknown_table", "forbidden_table"), answer.text


def test_a_row_that_is_hidden_cannot_be_told_by_an_error(service: Service, keys: dict[str, str]) -> None:
    for text in (
        "select count(*) from sales where cast(replace(shop, 'north', '1') as integer) = 1",
        "select count(*) from sales where amount >= 0 and cast(replace(shop, 'north', '7') as integer) > 0",
        "select sum(cast(replace(shop, 'north', '1') as integer)) from sales_by_shop",
    ):
        assert sql(service, keys["north"], text).status_code == 200, text
        assert sql(service, keys["analyst"], text).status_code == 422, text


def test_a_named_query_that_passes_the_policy_by_is_refused_and_says_why(
    service: Service, keys: dict[str, str]
) -> None:
    answer = ask(service, keys["north"], "GET", "/api/v1/queries/qualified")
    assert (answer.status_code, answer.json()["code"]) == (403, "policy_refuses_query")
    assert ask(service, keys["reader"], "GET", "/api/v1/queries/qualified").status_code == 200


def test_a_predicate_that_does_not_bind_shows_nothing(service: Service, keys: dict[str, str]) -> None:
    answer = sql(service, keys["broken"], "select count(*) from sales")
    assert answer.status_code in (422, 500) and "rows" not in answer.json()


def test_the_schema_shows_what_may_be_named_and_no_count_of_hidden_rows(service: Service, keys: dict[str, str]) -> None:
    listed = {table["name"]: table for table in ask(service, keys["north"], "GET", "/api/v1/tables").json()["tables"]}
    assert sorted(listed) == ["sales", "sales_by_shop", "versions"]
    assert listed["sales"]["rows"] is None and listed["versions"]["rows"] == 1
    whole = {table["name"]: table for table in ask(service, keys["analyst"], "GET", "/api/v1/tables").json()["tables"]}
    assert "secret" in whole and whole["sales"]["rows"] == 1000


def _tenant(url: str, key: str, shop: str, seed: int, start: threading.Barrier) -> tuple[Counter[str], list[str]]:
    """How its answers came, and what was in them of others'."""
    chance, seen, wrong = random.Random(seed), Counter[str](), list[str]()
    texts = [
        "select distinct shop from sales",
        "select shop from sales_by_shop",
        "select min(shop) from sales",
        "select distinct shop from sales -- {n}",
    ]
    with httpx.Client(base_url=url, headers={"X-API-Key": key}, timeout=60) as client:
        start.wait(60)  # all at once, with a question that takes long enough for them to meet
        answer = client.post("/api/v1/query", json={"sql": "select distinct shop from sales, range(20000)"})
        seen[answer.headers["X-Cache"]] += 1
        for _ in range(400):
            headers = {"Cache-Control": "no-cache"} if chance.random() < 0.1 else {}
            if chance.random() < 0.5:
                path = chance.choice(["/api/v1/queries/shops", f"/api/v1/queries/shops?limit={chance.randint(1, 4)}"])
                answer = client.get(path, headers=headers)
            else:
                text = chance.choice(texts).replace("{n}", str(chance.randint(1, 3)))
                answer = client.post("/api/v1/query", json={"sql": text}, headers=headers)
            shown = {row[0] for row in answer.json()["rows"]} if answer.status_code == 200 else {answer.text}
            if shown != {shop}:
                wrong.append(f"{shop} saw {shown}")
            seen[answer.headers.get("X-Cache", "?")] += 1
    return seen, wrong


def test_two_tenants_never_see_each_others_rows_through_cache_refresh_coalescing_and_replicas(
    shops: Small, keys: dict[str, str], keys_file: Path, redis_server: RedisServer
) -> None:
    freshness = "\n".join(
        f"{n}: {{fresh_seconds: 0.2, stale_seconds: 60}}" for n in ("quick", "steady", "never", "ad_hoc")
    )
    catalogue = shops.root / "hurried"
    subprocess.run(["cp", "-r", str(shops.catalogue), str(catalogue)], check=True)
    (catalogue / "freshness.yaml").write_text(freshness)
    settings = {"catalogue_dir": catalogue, "keys_file": keys_file, "redis_url": redis_server.url}
    with running(shops.snapshots, **settings) as one, running(shops.snapshots, **settings) as other:
        tenants = [(service.url, shop) for service in (one, other) for shop in ("north", "south")] * 3
        start = threading.Barrier(len(tenants))
        with ThreadPoolExecutor(len(tenants)) as pool:
            asking = [
                pool.submit(_tenant, url, keys[shop], shop, seed, start) for seed, (url, shop) in enumerate(tenants)
            ]
        answers = [future.result() for future in asking]
    seen = sum((counts for counts, _ in answers), Counter[str]())
    wrong = [line for _, lines in answers for line in lines]
    assert wrong == []
    assert seen.total() == 4812 and {"hit", "miss", "stale", "coalesced", "bypass"} <= set(seen), seen


# --- Audit ----------------------------------------------------------------------------------------------------------


def audited(service: Service, shops: Small, request_id: str) -> dict[str, Any]:
    file = shops.root / "audit" / "audit.jsonl"

    def line() -> dict[str, Any] | None:
        lines = [json.loads(text) for text in file.read_text().splitlines()]
        return next((entry for entry in lines if entry["request_id"] == request_id), None)

    found = wait_until(line, 30, what=f"the audit line of {request_id}")
    assert found is not None
    return found


def test_the_audit_log_says_who_ran_what_on_which_data(service: Service, shops: Small, keys: dict[str, str]) -> None:
    text = 'select count(*) as n, \'\n"level": "forged\' as x from sales'
    answer = sql(service, keys["north"], text)
    entry = audited(service, shops, answer.headers["X-Request-Id"])
    assert entry["sql"] == text and (entry["key"], entry["role"], entry["policy"]) == ("north", "analyst", "shop")
    assert entry["snapshot"] == answer.headers["X-Data-Version"] and entry["rows"] == 1 and entry["status"] == 200
    assert entry["seconds"] > 0 and keys["north"] not in json.dumps(entry)


def test_named_queries_refusals_and_strangers_are_audited_too(
    service: Service, shops: Small, keys: dict[str, str]
) -> None:
    named = ask(service, keys["reader"], "GET", "/api/v1/queries/shops?limit=3")
    entry = audited(service, shops, named.headers["X-Request-Id"])
    assert entry["query"] == "shops" and entry["params"] == "limit=3"
    refused = audited(service, shops, sql(service, keys["analyst"], "drop table sales").headers["X-Request-Id"])
    assert refused["sql"] == "drop table sales" and refused["status"] == 422
    stranger = audited(service, shops, ask(service, "nobody", "GET", "/api/v1/tables").headers["X-Request-Id"])
    assert (stranger["status"], stranger["key"], stranger["code"]) == (401, "(refused key)", "unauthorized")


def test_an_audit_log_that_cannot_be_written_loses_lines_loudly_and_no_answer(
    shops: Small, serve_full: Callable[[], Service], keys: dict[str, str]
) -> None:
    full = serve_full()
    assert ask(full, keys["reader"], "GET", "/api/v1/queries").status_code == 200
    wait_until(lambda: full.metric("bi_audit_lines_lost_total") >= 1, 30, what="the loss to be counted")
    assert ask(full, keys["reader"], "GET", "/api/v1/queries").status_code == 200


@pytest.fixture
def serve_full(shops: Small, keys: dict[str, str], keys_file: Path) -> Iterator[Callable[[], Service]]:
    """A service whose audit log is on a full disk."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    link = shops.root / "full.jsonl"
    link.unlink(missing_ok=True)
    link.symlink_to("/dev/full")
    with running(shops.snapshots, catalogue_dir=shops.catalogue, keys_file=keys_file, audit_log=link) as service:
        yield lambda: service
