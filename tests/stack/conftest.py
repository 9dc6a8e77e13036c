"""One stack for the whole tier, two replicas, on small data of the tests' own; and one with the demo.

The tests share it and run in the order of `ORDER`: the alerts' faults are injected right after the start, for the rules
look at the last two minutes and want their condition for one more; what needs little traffic is checked meanwhile.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.production import ProductionStack
from tests.support.service import wait_until
from tests.support.small import Small, make_small
from tests.support.stack import (
    MEASURED,
    SERVICE_LABEL,
    STACK_TEST_SECONDS,
    Prometheus,
    Stack,
    compose_image,
    docker,
    own_image,
    running_stack,
)

from .endpoint import Endpoint
from .receiver import Receiver

ORDER = [
    "test_start", "test_confinement", "test_demo", "test_container_cache", "test_alerts", "test_dashboards", "test_grafana",
    "test_chat", "test_mcp", "test_publish", "test_resolved", "test_load", "test_down_and_up", "test_supply_chain",
    "test_prod", "test_attack", "test_deploy", "test_backup", "test_acme",
]  # fmt: skip
REPLICAS = 2
SLOW, FAILING, FINE = 12, 12, 24
# More than the tests can spend, so that no alert tells of it.
DAILY_TOKENS = 10**12


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order above, for this folder's tests alone; every one is marked `stack` and may take its time."""
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    places = iter(sorted(here, key=lambda item: ORDER.index(item.path.stem)))
    items[:] = [next(places) if item in here else item for item in items]
    for item in here:
        item.add_marker(pytest.mark.stack)
        item.add_marker(pytest.mark.timeout(STACK_TEST_SECONDS))


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker engine, and the service's image made of the source as it is now (seconds when nothing changed)."""
    own_image()


@pytest.fixture(scope="session")
def receiver(engine: None) -> Iterator[Receiver]:
    """Where Alertmanager sends alerts and heartbeats."""
    server = Receiver()
    yield server
    server.close()


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder that users of containers may read."""
    with tempfile.TemporaryDirectory(prefix="bi-stack-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture(scope="session")
def small_data(folder: Path) -> Small:
    """The data and catalogue that the stack serves; `write_data(2)` changes a value that queries show."""
    return make_small(folder)


@pytest.fixture(scope="session")
def model_image(engine: None) -> str:
    """A scripted model in the place of the local model server's image."""
    tag = "bi-standin/llm:test"
    base = f"BASE={compose_image('BI_QUERY_IMAGE')}"
    docker("build", "--quiet", "--tag", tag, "--build-arg", base, str(Path(__file__).parent / "model"), timeout=120)
    return tag


@pytest.fixture(scope="session")
def endpoint() -> Iterator[Endpoint]:
    """A model endpoint outside of the stack, to which its gate leads."""
    server = Endpoint()
    yield server
    server.close()


@pytest.fixture(scope="session")
def stack(model_image: str, folder: Path, small_data: Small, receiver: Receiver, endpoint: Endpoint) -> Iterator[Stack]:
    """All of compose.yaml with two replicas, healthy; its alerts come here at once."""
    secrets = folder / "alert-secrets"
    secrets.mkdir()
    for name, who in (("webhook-url", "team"), ("heartbeat-url", "heartbeat")):
        (secrets / name).write_text(receiver.url(who))
    settings = {
        "BI_DATA_FOLDER": str(small_data.data),
        "BI_CATALOGUE_FOLDER": str(small_data.catalogue),
        "BI_FAULT_INJECTION": "true",
        "BI_MCP": "true",
        "COMPOSE_PROFILES": "llm,llm-outside",
        "BI_LLM_IMAGE": model_image,
        "BI_LLM_MEMORY": "128m",
        "BI_LLM_CPUS": "0.5",
        "BI_LLM_BASE_URL": "http://llm:11434/v1",
        "BI_LLM_MODEL": "scripted",
        "BI_LLM_TOKENS_PER_DAY": str(DAILY_TOKENS),
        "BI_LLM_OUTSIDE_URL": endpoint.url,
        "BI_RATE_LIMIT": "1000000/minute",
        "BI_RATE_LIMIT_ROUTES": json.dumps({"/api/v1/tables": "10/minute"}),
        "BI_MAX_RESULT_ROWS": "500",
        "BI_QUERY_TIMEOUT_SECONDS": "2",
        "BI_PUBLISH_INTERVAL_SECONDS": "1",
        "BI_PUBLISH_SETTLE_SECONDS": "2",
        "BI_ALERT_RECEIVER": "webhook",
        "BI_ALERT_SECRETS_FOLDER": str(secrets),
        "BI_ALERT_WEBHOOK_URL_FILE": "/run/alert-secrets/webhook-url",
        "BI_ALERT_HEARTBEAT_URL_FILE": "/run/alert-secrets/heartbeat-url",
        "BI_ALERT_GROUP_WAIT": "1s",
        "BI_ALERT_GROUP_INTERVAL": "5s",
    }
    with running_stack(Stack(folder, settings, scale={"query": REPLICAS})) as running:
        yield running
        _measure(running)


def _measure(stack: Stack) -> None:
    ids = [container["Id"] for container in stack.inspect(running=True)]
    lines = docker("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", *ids).splitlines() if ids else []
    for line in sorted(lines):
        name, _, memory = line.partition(" ")
        MEASURED[f"memory of {name.removeprefix(stack.project + '-')}"] = memory
    for service in sorted({container["Config"]["Labels"][SERVICE_LABEL] for container in stack.inspect()}):
        image = stack.inspect(service)[0]["Image"]
        size = int(docker("image", "inspect", "--format", "{{.Size}}", image))
        MEASURED[f"image of {service}"] = f"{size / 1e6:.0f} MB"


@pytest.fixture(scope="session")
def production(engine: None, folder: Path, small_data: Small) -> Iterator[ProductionStack]:
    """compose.prod.yaml with two replicas, healthy."""
    settings = {
        "BI_DATA_FOLDER": str(small_data.data),
        "BI_CATALOGUE_FOLDER": str(small_data.catalogue),
        "BI_RATE_LIMIT": "1000000/minute",
        "BI_MCP": "true",
    }
    with running_stack(ProductionStack(folder, settings, scale={"query": REPLICAS})) as running:
        assert isinstance(running, ProductionStack)
        yield running


@pytest.fixture(scope="session")
def prometheus(stack: Stack) -> Prometheus:
    """The stack's Prometheus, which scrapes every replica by now."""
    found = Prometheus(stack.url("PROMETHEUS"))
    wait_until(
        lambda: (
            len(found.query('http_requests_total{job="query", endpoint="/api/v1/queries/{name}", status="200"}'))
            == REPLICAS
        ),
        60,
        what="Prometheus to have scraped both replicas",
    )
    return found


@dataclass
class Faults:
    """When the faults of the alerts' tests were injected (seconds since the epoch)."""

    at: float


@pytest.fixture(scope="session", autouse=True)
def faults(request: pytest.FixtureRequest) -> Faults | None:
    """Slow answers, failed ones and good ones, at once: enough for both of the brief's alerts.

    Enough, too, for the budgets' own alerts (ten bad ones): those must not mute the brief's.
    """
    wanted = {"stack", "prometheus"}
    if not any(wanted & set(getattr(item, "fixturenames", ())) for item in request.session.items):
        return None
    stack: Stack = request.getfixturevalue("stack")
    request.getfixturevalue("prometheus")
    started = time.time()
    ways = [{"X-Fault-Delay-Seconds": "3"}] * SLOW + [{"X-Fault-Status": "500"}] * FAILING + [{}] * FINE

    def ask(headers: dict[str, str]) -> None:
        stack.get("/api/v1/queries/uncached", **headers)

    stack.get("/api/v1/queries/uncached")  # reads the key, once

    threads = [threading.Thread(target=ask, args=(headers,)) for headers in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Faults(started)


@pytest.fixture(scope="session")
def image(engine: None) -> str:
    """The service's image."""
    return compose_image("BI_QUERY_IMAGE")
