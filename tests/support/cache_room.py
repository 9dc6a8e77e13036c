"""Services that share a Redis, and queries made to show what a cache did."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from .redis_server import RedisServer
from .service import Service, running
from .small import FRESHNESS, Small, make_small

_T = TypeVar("_T")
ECHO = """/*---
title: Gives back what it is given
freshness: steady
parameters:
  text: {type: string, max_length: 2000, description: Any text.}
---*/
select $text as text, version from versions
"""
BRIEF = """/*---
title: Expires after a second, with no stale time
freshness: brief
---*/
select version from versions
"""
# Seconds of engine time on a busy machine, well below its time-out of 20 s.
SLOW_SIZE = 15
ENDLESS_SIZE = 1_000_000


def make_room(root: Path) -> Small:
    """A small deployment with the queries above, published."""
    small = make_small(root)
    for name, text in (("echo", ECHO), ("brief", BRIEF)):
        (small.catalogue / "queries" / f"{name}.sql").write_text(text)
    (small.catalogue / "freshness.yaml").write_text(FRESHNESS + "brief: {fresh_seconds: 1, stale_seconds: 0}\n")
    small.publish()
    return small


@contextlib.contextmanager
def serving(small: Small, **settings: object) -> Iterator[Service]:
    """A service on `small`."""
    with running(small.snapshots, **{"catalogue_dir": small.catalogue, **settings}) as service:
        service.client.close()
        service.client = httpx.Client(
            base_url=service.url, timeout=60, limits=httpx.Limits(max_connections=400, max_keepalive_connections=400)
        )
        yield service


@dataclass(frozen=True)
class Pair:
    """Two services on one snapshot and one Redis."""

    a: Service
    b: Service
    redis: RedisServer
    small: Small

    def total(self, metric: str, **labels: str) -> float:
        """A metric, summed over both."""
        return self.a.metric(metric, **labels) + self.b.metric(metric, **labels)

    def entries(self, query: str = "") -> list[bytes]:
        """Names of the entries in Redis."""
        found: Any = self.redis.client.keys(f"bi:entry:*:{query}*")
        return list(found)


def echoed(response: httpx.Response) -> str:
    """What an `echo` answer holds; fails unless it is a whole and good answer."""
    assert response.status_code == 200, response.text
    return str(response.json()["rows"][0][0])


def label_text(value: str) -> str:
    """A parameter's value as labels spell it."""
    return quote(value, safe="")


def together(count: int, work: Callable[[int], _T]) -> list[_T]:
    """`work(0)` … `work(count - 1)`, all at once."""
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(work, range(count)))


def result_of(response: httpx.Response) -> tuple[str, str]:
    """How an answer was come by: X-Cache and, for cached ones, the tier."""
    assert response.status_code == 200, response.text
    timing = response.headers["server-timing"]
    return response.headers["x-cache"], timing.removeprefix("cache;desc=") if timing.startswith("cache") else "engine"
