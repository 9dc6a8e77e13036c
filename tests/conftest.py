"""Fixtures: a small deployment, the demo, and real services on them."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from bi_query.catalogue import load_catalogue
from bi_query.catalogue_dir import demo_catalogue_dir
from bi_query.publish import How, publish
from bi_query.settings import load_settings
from bi_query.sources import demo_data_dir

from tests.support.redis_server import RedisServer, redis_running
from tests.support.service import Service, running
from tests.support.small import Small, make_small
from tests.support.stack import MEASURED

ROOT = Path(__file__).parents[1]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured on the stack."""
    if MEASURED:
        terminalreporter.section("measured on the stack")
        for what, value in MEASURED.items():
            terminalreporter.write_line(f"{what}: {value}")


@pytest.fixture(autouse=True, scope="session")
def no_settings_from_outside() -> None:
    """Tests decide every setting themselves."""
    for name in [name for name in os.environ if name.startswith("BI_")]:
        del os.environ[name]


@pytest.fixture
def small(tmp_path: Path) -> Small:
    """A small deployment of this test's own, published."""
    deployment = make_small(tmp_path)
    deployment.publish()
    return deployment


@pytest.fixture
def serve(small: Small) -> Iterator[Callable[..., Service]]:
    """Start services on the small deployment: `serve(max_connections=2)`."""
    with contextlib.ExitStack() as stack:

        def start(**settings: object) -> Service:
            return stack.enter_context(running(small.snapshots, **{"catalogue_dir": small.catalogue, **settings}))

        yield start


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A fresh Redis of this test's own."""
    with redis_running() as server:
        yield server


@pytest.fixture(scope="session")
def demo_snapshots() -> Path:
    """The demo, published once and kept between runs (its fingerprint says when it must be made anew)."""
    folder = ROOT / ".bi" / "test-snapshots"
    settings = load_settings(snapshot_dir=folder)
    publish(settings, demo_data_dir(), load_catalogue(demo_catalogue_dir()), How(progress=False, is_demo=True))
    return folder


@pytest.fixture(scope="session")
def demo_service(demo_snapshots: Path) -> Iterator[Service]:
    """A service on the demo, shared by tests that only ask."""
    with running(demo_snapshots) as service:
        yield service


class DemoAnswers:
    """The demo as its users see it, and the raw files beside it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.raw = duckdb.connect()
        for path in demo_data_dir().glob("*.parquet"):
            self.raw.execute(f"create view {path.stem} as from '{path}'")

    def rows(self, query: str, /, **parameters: Any) -> list[dict[str, Any]]:
        """A named query's rows, by column name."""
        response = self._service.query(query, None, **parameters)
        assert response.status_code == 200, response.text
        document = response.json()
        names = [column["name"] for column in document["columns"]]
        return [dict(zip(names, row, strict=True)) for row in document["rows"]]


@pytest.fixture(scope="session")
def demo(demo_service: Service) -> Iterator[DemoAnswers]:
    """Answers over HTTP, and `raw`: DuckDB over the raw Parquet."""
    answers = DemoAnswers(demo_service)
    yield answers
    answers.raw.close()


@atexit.register
def _quiet_end() -> None:
    """Keep pytest's closing line the last: DuckDB's bindings list what is still referenced when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
