"""The demo's row policy: one store's key gets what everybody gets who asks for that store, and nothing of the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from bi_query.access import Role
from bi_query.keys import KeyFile

from tests.support.service import Service, running

STORE = 367


@pytest.fixture(scope="module")
def clients(
    demo_snapshots: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """One store's analyst, and an analyst who sees everything."""
    file = KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")
    [store] = file.add("store", Role.ANALYST, policy="store", attributes={"store_id": STORE})
    [everybody] = file.add("everybody", Role.ANALYST)
    with (
        running(demo_snapshots, keys_file=file.path) as service,
        _client(service, store) as one,
        _client(service, everybody) as other,
    ):
        yield one, other


def _client(service: Service, key: str) -> httpx.Client:
    return httpx.Client(base_url=service.url, headers={"X-API-Key": key}, timeout=60)


@pytest.mark.parametrize(
    ("query", "of_the_store"),
    [
        ("dashboard_metrics", {}),
        ("department_performance", {}),
        ("traffic_by_hour", {}),
        ("top_products", {"store_id": STORE}),
        ("sales_by_week", {"store_id": STORE}),
        ("product_trend", {"store_id": STORE, "product_id": 1082185}),
    ],
)
def test_a_stores_key_gets_what_the_store_filter_gives(
    clients: tuple[httpx.Client, httpx.Client], query: str, of_the_store: dict[str, int]
) -> None:
    one, everybody = clients
    asked = one.get(f"/api/v1/queries/{query}", params=of_the_store)
    expected = everybody.get(f"/api/v1/queries/{query}", params={**of_the_store, "store_id": STORE})
    assert asked.status_code == expected.status_code == 200, asked.text + expected.text
    assert asked.json()["rows"] == expected.json()["rows"] != []


def test_another_stores_figures_are_empty_whatever_is_asked(clients: tuple[httpx.Client, httpx.Client]) -> None:
    one, everybody = clients
    assert everybody.get("/api/v1/queries/top_products", params={"store_id": 406}).json()["row_count"] > 0
    for query in ("top_products", "store_ranking"):
        rows = one.get(f"/api/v1/queries/{query}", params={"store_id": 406} if query == "top_products" else {}).json()[
            "rows"
        ]
        assert all(str(STORE) in map(str, row) for row in rows), rows
    text = "select store_id from sales_lines union select store_id from baskets union select store_id from week_totals"
    assert one.post("/api/v1/query", json={"sql": text}).json()["rows"] == [[STORE]]


@pytest.mark.parametrize("query", ["suppliers", "sales_forecast", "customer_segments", "basket_affinity"])
def test_figures_over_all_stores_are_refused_with_the_reason(
    clients: tuple[httpx.Client, httpx.Client], query: str
) -> None:
    answer = clients[0].get(f"/api/v1/queries/{query}")
    assert (answer.status_code, answer.json()["code"]) == (403, "policy_refuses_query")
    assert "row policy 'store'" in answer.json()["detail"]
