"""One stack for every fault: two replicas behind the edge, thirty users, the rules and limits as they are shipped.

What a test breaks it mends: the next finds a stack where every replica is healthy and Redis is in use.
"""

from __future__ import annotations

import contextlib
import ssl
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.production import DOMAIN, ProductionStack
from tests.support.service import wait_until
from tests.support.small import Small, make_small
from tests.support.stack import (
    MEASURED,
    STACK_TEST_SECONDS,
    Prometheus,
    address,
    own_image,
    running_stack,
    volume_files,
)

from .load import Answer, Check, Edge, Load, Question, load, right_answers

REPLICAS = 2
SNAPSHOT_VOLUME_MB = 48
ENGINE_SPILL_MB = 128
# An answer of which the edge already has the head can no longer be asked of another replica: its connection is cut.
CUT_BY_A_KILL = ("POST", "GET RemoteProtocolError", "GET ReadError")
EDGE_WAITS_SECONDS = 15  # above the queue's 4 s and the query's 8 s
# The volume of the snapshots as a disk of its own, small enough to be filled.
OVERLAY = f"""
volumes:
  snapshots:
    driver_opts: {{type: tmpfs, device: tmpfs, o: "size={SNAPSHOT_VOLUME_MB}m,uid=10001,gid=10001,mode=0755"}}
"""
FRESHNESS = """
quick: {fresh_seconds: 1, stale_seconds: 60}
steady: {fresh_seconds: 3, stale_seconds: 0}
never: {fresh_seconds: 0, stale_seconds: 0}
ad_hoc: {fresh_seconds: 2, stale_seconds: 0}
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder brings up containers."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.stack)
            item.add_marker(pytest.mark.timeout(STACK_TEST_SECONDS))


@pytest.fixture(scope="package")
def engine() -> None:
    """A Docker engine, and the service's image made of the source as it is now."""
    own_image()


@pytest.fixture(scope="package")
def folder() -> Iterator[Path]:
    """A folder that users of containers may read."""
    with tempfile.TemporaryDirectory(prefix="bi-chaos-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture(scope="package")
def small_data(folder: Path) -> Small:
    """The data and catalogue that the stack serves; answers expire soon, so that every tier is asked all the time."""
    small = make_small(folder)
    (small.catalogue / "freshness.yaml").write_text(FRESHNESS)
    return small


@pytest.fixture(scope="package")
def stack(engine: None, folder: Path, small_data: Small) -> Iterator[ProductionStack]:
    """Production as it is shipped, with two replicas, and one small disk for the snapshots."""
    overlay = folder / "small-disk.yaml"
    overlay.write_text(OVERLAY)
    settings = {
        "COMPOSE_FILE": f"compose.yaml:compose.prod.yaml:{overlay}",
        "BI_DATA_FOLDER": str(small_data.data),
        "BI_CATALOGUE_FOLDER": str(small_data.catalogue),
        "BI_RATE_LIMIT": "1000000/minute",
        "BI_QUERY_TIMEOUT_SECONDS": "8",
        "BI_QUEUE_TIMEOUT_SECONDS": "4",
        "BI_EDGE_ANSWER_TIMEOUT": f"{EDGE_WAITS_SECONDS}s",
        "BI_QUERY_MEMORY": "768m",
        "BI_CACHE_MEMORY_BYTES": str(64 * 1024 * 1024),
        "BI_SPILL_MAX_BYTES": str(ENGINE_SPILL_MB * 1024 * 1024),
    }
    with running_stack(ProductionStack(folder, settings, scale={"query": REPLICAS})) as running:
        assert isinstance(running, ProductionStack)
        yield running


@pytest.fixture(scope="package")
def headers(stack: ProductionStack) -> dict[str, str]:
    """The first key of the stack, an administrator's."""
    return {"X-API-Key": volume_files(stack, "secrets")["api-key"].decode().strip()}


@pytest.fixture(scope="package")
def edge(stack: ProductionStack, headers: dict[str, str]) -> Edge:
    """The one door."""
    authority = ssl.create_default_context(cadata=stack.root_certificate())
    return Edge(stack.https_port, DOMAIN, authority, headers)


def prometheus_of(stack: ProductionStack) -> Prometheus:
    """The stack's Prometheus, with the rules as they are shipped; asked at its own address, for no port is published."""
    return Prometheus(f"http://{address(stack.inspect('prometheus', running=True)[0])}:9090")


@pytest.fixture(scope="package")
def expected(stack: ProductionStack, headers: dict[str, str]) -> Mapping[Question, Answer]:
    """The right answers, from every replica by itself, before anything is broken."""
    return right_answers(list(stack.replicas().values()), headers)


@dataclass
class Ordeal:
    """One fault under load: what the users saw, and how long it took to be well again."""

    users: Load
    stack: ProductionStack
    heal_seconds: float | None = None
    alerts: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def heals(self, well: Check, what: str, *, since: float | None = None, within_seconds: float = 60.0) -> None:
        """Wait until it is well again; the seconds are counted from `since` (now, when the fault was just taken away)."""
        since = time.monotonic() if since is None else since
        wait_until(well, within_seconds, what=lambda: f"{what}; {self.users.told()}")
        self.heal_seconds = time.monotonic() - since

    def fires(self, alert: str, *, within_seconds: float = 90.0) -> None:
        """Wait until Prometheus says that the alert fires, with the rules as they are shipped."""
        expression = f'ALERTS{{alertname="{alert}", alertstate="firing"}}'
        prometheus = prometheus_of(self.stack)
        wait_until(lambda: prometheus.query(expression), within_seconds, what=f"{alert} to fire")
        self.alerts[alert] = time.monotonic() - self.started

    def told(self) -> str:
        """The line of the report."""
        healed = "" if self.heal_seconds is None else f"; well again after {self.heal_seconds:.1f} s"
        fired = "".join(f"; {name} fired after {seconds:.0f} s" for name, seconds in self.alerts.items())
        return self.users.told() + healed + fired


class Chaos:
    """Runs a fault under load and judges it."""

    def __init__(self, stack: ProductionStack, edge: Edge, expected: Mapping[Question, Answer]) -> None:
        self._stack, self._edge, self._expected = stack, edge, expected

    @contextlib.contextmanager
    def fault(self, name: str, *, may_cut: tuple[str, ...] = ()) -> Iterator[Ordeal]:
        """Thirty users while the block breaks something and mends it; then no answer may have failed or been wrong.

        A request by a method of `may_cut` may be cut and asked again by its user; nothing else may.
        """
        with load(self._edge, self._expected, repeats=bool(may_cut)) as users:
            ordeal = Ordeal(users, self._stack)
            try:
                yield ordeal
                users.more(100)
            finally:
                MEASURED[f"chaos: {name}"] = ordeal.told()
        assert users.wrong == [], f"{name}: {len(users.wrong)} wrong answers"
        assert users.failed == [], f"{name}: {ordeal.told()}"
        assert [why for why in users.cut if not why.startswith(may_cut)] == [], f"{name}: {users.cut}"


@pytest.fixture
def chaos(stack: ProductionStack, edge: Edge, expected: Mapping[Question, Answer]) -> Chaos:
    """Breaks things while thirty users ask."""
    return Chaos(stack, edge, expected)
