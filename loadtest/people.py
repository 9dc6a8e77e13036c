"""Who works with the service: dashboards refreshing, analysts exploring, a long tail, and one person who measures.

Times between two actions are drawn anew each time. At full speed nobody thinks; what is asked stays the same.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar, Protocol
from urllib.parse import urlencode

from gevent.pool import Pool
from locust import FastHttpUser, task

from .keys import KeyRing
from .pauses import Pauses
from .questions import AD_HOC, AD_HOC_ENDPOINT, NAMED_ENDPOINT, Question, Questions, Zipf

DASHBOARDS = 5
BROWSER_CONNECTIONS = 6
# So that everyone notices within it that the phase has changed.
_LONGEST_NAP_SECONDS = 1.0
_PAUSE_NAP_SECONDS = 0.1
CONNECTION_TIMEOUT_SECONDS = 10.0
NETWORK_TIMEOUT_SECONDS = 60.0


class Sink(Protocol):
    """Where answers are counted."""

    def add(
        self, query: str, endpoint: str, status: int, seconds: float, cache: str | None, version: str | None = None
    ) -> None:
        """Count one."""


@dataclass
class World:
    """What everyone shares in a run. `fault_headers` go with `fault_share` of the requests; `pace` divides think times."""

    questions: Questions
    sink: Sink
    run: str
    keys: Sequence[str] = ()
    no_cache: bool = False
    full_speed: bool = False
    pace: float = 1.0
    fault_headers: dict[str, str] = field(default_factory=dict)
    fault_share: float = 1.0
    pauses: Pauses = field(default_factory=Pauses)


class Person(FastHttpUser):
    """Somebody with keys, habits and pauses. `world` is set before users start."""

    abstract = True
    network_timeout = NETWORK_TIMEOUT_SECONDS
    connection_timeout = CONNECTION_TIMEOUT_SECONDS
    insecure = False
    concurrency = BROWSER_CONNECTIONS
    world: ClassVar[World]
    thinks: ClassVar[tuple[float, float]] = (1.0, 2.0)
    hurries: ClassVar[bool] = True
    _numbers: ClassVar[Any] = count(1)

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        number = next(Person._numbers)
        self.chance = random.Random(number)
        self.ring = KeyRing(f"loadtest-{self.world.run}-{number}", self.world.keys, number - 1)
        # Not everyone at once: whoever starts has been thinking for a while.
        self._next = self.world.pauses.now() + self.chance.uniform(0, self.thinks[1]) / self.world.pace

    def wait_time(self) -> float:
        """Seconds until it is worth looking again."""
        if self.world.pauses.on:
            return _PAUSE_NAP_SECONDS
        return 0.0 if self._hurry else min(_LONGEST_NAP_SECONDS, max(0.0, self._next - self.world.pauses.now()))

    @property
    def _hurry(self) -> bool:
        return self.world.full_speed and self.hurries

    @task
    def act(self) -> None:
        """Do the next thing, when it is time."""
        pauses = self.world.pauses
        if pauses.on or (not self._hurry and pauses.now() < self._next):
            return
        with pauses.action():
            self.work()
        self._next = pauses.now() + self.chance.uniform(*self.thinks) / self.world.pace

    def work(self) -> None:
        """One action: some requests."""
        raise NotImplementedError

    def ask(self, question: Question, *, no_cache: bool = False) -> None:
        """Send one question and count its answer."""
        key = self.ring.key
        headers = {"X-API-Key": key}
        if no_cache or self.world.no_cache:
            headers["Cache-Control"] = "no-cache"
        if self.world.fault_headers and self.chance.random() < self.world.fault_share:
            headers |= self.world.fault_headers
        body = None
        if question.sql is None:
            path, endpoint = f"/api/v1/queries/{question.query}", NAMED_ENDPOINT
            if question.parameters:
                path += "?" + urlencode(question.parameters)
        else:
            path = endpoint = AD_HOC_ENDPOINT
            body = {"sql": question.sql, "params": question.parameters}
        started = time.perf_counter()
        with self.client.request(
            "GET" if body is None else "POST",
            path,
            name=question.query,
            headers=headers,
            json=body,
            catch_response=True,
        ) as response:
            seconds = time.perf_counter() - started
            got = response.headers or {}
            self.ring.answered(key, got.get("RateLimit-Remaining"))
            self.world.sink.add(
                question.query, endpoint, response.status_code, seconds, got.get("X-Cache"), got.get("X-Data-Version")
            )


class Dashboard(Person):
    """A dashboard left open: a handful of tiles, asked at once as a browser does, again and again."""

    weight = 6
    thinks = (5.0, 15.0)

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        number: int = Zipf(range(DASHBOARDS)).draw(self.chance)
        self.tiles = self.world.questions.dashboard(number)

    def work(self) -> None:
        """Refresh every tile."""
        Pool(BROWSER_CONNECTIONS).map(self.ask, self.tiles)


class Analyst(Person):
    """Explores: mostly named queries with popular values, sometimes SQL of their own."""

    weight = 3
    thinks = (2.0, 8.0)

    def work(self) -> None:
        """One question."""
        written = self.world.questions.ad_hoc(self.chance) if self.chance.random() < 0.15 else None
        self.ask(written or self.world.questions.exploring(self.chance))


class LongTail(Person):
    """Somebody with an unusual question."""

    weight = 1
    thinks = (5.0, 20.0)

    def work(self) -> None:
        """One question that hardly anybody asks."""
        self.ask(self.world.questions.rare(self.chance))


class Measurer(Person):
    """One person who goes through the catalogue with the cache switched off: what an answer costs without it."""

    fixed_count = 1
    thinks = (0.4, 0.8)
    hurries = False

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._turn = 0

    def work(self) -> None:
        """The next query, computed anew."""
        names = [*self.world.questions.names, AD_HOC]
        name = names[self._turn % len(names)]
        self._turn += 1
        if name == AD_HOC:
            question = self.world.questions.ad_hoc(self.chance)
            if question is None:
                return
        else:
            question = self.world.questions.of(name, self.chance)
        self.ask(question, no_cache=True)


PEOPLE: list[type[Person]] = [Dashboard, Analyst, LongTail, Measurer]
