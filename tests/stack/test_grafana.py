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
def test_its_data_sources_are_there_and_read_only(grafana: httpx.Client, uid: str) -> None:
    source = grafana.get(f"/api/datasources/uid/{uid}").json()
    assert source["readOnly"] is True, source


def test_its_data_sources_answer(grafana: httpx.Client) -> None:
    health = grafana.get("/api/datasources/uid/prometheus/health")
    assert health.status_code == 200 and health.json()["status"] == "OK", health.text
    # Alertmanager's has no backend, so no health: the browser asks it through Grafana, as is done here.
    status = grafana.get("/api/datasources/proxy/uid/alertmanager/api/v2/status")
    assert status.status_code == 200 and status.json()["versionInfo"], status.text


def test_its_first_page_is_the_service_dashboard(grafana: httpx.Client) -> None:
    home = grafana.get("/api/dashboards/home")
    assert home.status_code == 200 and home.json()["dashboard"]["title"] == "Service", home.text[:300]


def test_it_runs_no_data_source_that_nobody_asks(grafana: httpx.Client) -> None:
    found = {plugin["id"] for plugin in grafana.get("/api/plugins", params={"type": "datasource"}).json()}
    assert "prometheus" in found and not {"loki", "tempo", "elasticsearch"} & found, found


def test_its_dashboards_are_those_of_the_repository_in_their_folders(grafana: httpx.Client) -> None:
    wanted = {dashboard["uid"]: (dashboard["title"], path.parent.name) for path, dashboard in load_all().items()}

    def found() -> dict[str, tuple[str, str]]:
        listed = grafana.get("/api/search", params={"type": "dash-db"}).json()
        return {entry["uid"]: (entry["title"], entry.get("folderTitle", "")) for entry in listed}

    wait_until(lambda: found() == wanted, 60, what=lambda: f"{wanted}, not {found()}")
    for uid in wanted:
        entry = grafana.get(f"/api/dashboards/uid/{uid}").json()
        assert entry["meta"]["provisioned"] is True
        changed = {"dashboard": {**entry["dashboard"], "title": "Changed"}, "overwrite": True}
        refused = grafana.post("/api/dashboards/db", json=changed)
        assert 400 <= refused.status_code < 500, f"a provisioned dashboard was changed: {refused.text}"
        assert grafana.get(f"/api/dashboards/uid/{uid}").json()["dashboard"]["title"] == wanted[uid][0]


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
