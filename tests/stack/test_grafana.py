"""Grafana as provisioned, through its own HTTP API. Runs where its image can be had; Debian has no package of it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.dashboards import iter_queries, load_all
from tests.support.service import wait_until
from tests.support.stack import Stack, has_grafana, volume_files

from .test_dashboards import WITHOUT_DATA
from .traffic import everything, traffic

pytestmark = pytest.mark.skipif(
    not has_grafana(),
    reason="Grafana's image can neither be found nor pulled here (make images), and Debian has no package",
)


@pytest.fixture(scope="module")
def grafana(stack: Stack) -> Iterator[httpx.Client]:
    """Grafana's API as its administrator."""
    password = volume_files(stack, "secrets")["grafana-admin-password"].decode().strip()
    with httpx.Client(base_url=stack.url("GRAFANA"), auth=("admin", password), timeout=30) as client:
        yield client


def test_grafana_is_healthy_and_asks_who_you_are(stack: Stack, grafana: httpx.Client) -> None:
    assert grafana.get("/api/health").json()["database"] == "ok"
    assert httpx.get(f"{stack.url('GRAFANA')}/api/search").status_code == 401
    assert httpx.get(f"{stack.url('GRAFANA')}/api/search", auth=("admin", "admin")).status_code == 401


@pytest.mark.parametrize("uid", ["prometheus", "alertmanager"])
def test_its_data_sources_are_there_read_only_and_answer(grafana: httpx.Client, uid: str) -> None:
    source = grafana.get(f"/api/datasources/uid/{uid}").json()
    assert source["readOnly"] is True
    health = grafana.get(f"/api/datasources/uid/{uid}/health")
    assert health.status_code == 200 and health.json()["status"] == "OK", health.text


def test_its_dashboards_are_those_of_the_repository_in_their_folders(grafana: httpx.Client) -> None:
    wanted = {dashboard["uid"]: (dashboard["title"], path.parent.name) for path, dashboard in load_all().items()}

    def found() -> dict[str, tuple[str, str]]:
        listed = grafana.get("/api/search", params={"type": "dash-db"}).json()
        return {entry["uid"]: (entry["title"], entry.get("folderTitle", "")) for entry in listed}

    wait_until(lambda: found() == wanted, 60, what=lambda: f"{wanted}, not {found()}")
    for uid in wanted:
        entry = grafana.get(f"/api/dashboards/uid/{uid}").json()
        assert entry["meta"]["provisioned"] is True
        refused = grafana.post("/api/dashboards/db", json={"dashboard": entry["dashboard"], "overwrite": True})
        assert refused.status_code == 400, "a provisioned dashboard was changed"


def test_every_panels_query_has_data_through_grafana(stack: Stack, grafana: httpx.Client) -> None:
    left = [query for query in iter_queries() if (query.dashboard, query.panel) not in WITHOUT_DATA]

    def has_data(expr: str) -> bool:
        query = {"refId": "A", "datasource": {"uid": "prometheus"}, "expr": expr, "instant": True, "intervalMs": 15000}
        answer = grafana.post("/api/ds/query", json={"queries": [query], "from": "now-15m", "to": "now"})
        assert answer.status_code == 200, f"{expr}: {answer.text}"
        return any(
            frame["data"]["values"] and frame["data"]["values"][0] for frame in answer.json()["results"]["A"]["frames"]
        )

    def all_have() -> bool:
        left[:] = [query for query in left if not has_data(query.expr)]
        return not left

    with traffic(stack, everything, users=3, pause_seconds=0.05):
        wait_until(all_have, 180, what=lambda: "; ".join(f"{q.dashboard} / {q.panel}" for q in left))
