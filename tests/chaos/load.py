"""The users of slo.yaml with a fixed set of questions whose right answers are known: each answer is compared, byte for byte.

A user asks, compares, rests a moment and asks the next. Three things can go wrong, and each is counted by itself:

- failed: no answer, or another status than 200;
- wrong: a 200 with other bytes than the right ones, or of other data;
- slow: longer than the latency objective's threshold.

A user who `repeats` asks again, as careful clients do, when the line was cut or the edge found nobody (502, 503, 504); what
had to be repeated is counted as `cut`, and is failed only if it stays so.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from loadtest.objectives import load_objectives
from tests.support.service import wait_until

_OBJECTIVES = load_objectives(Path(__file__).resolve().parents[2] / "slo.yaml")
USERS = _OBJECTIVES.users
SLOW_SECONDS = _OBJECTIVES.threshold_seconds
REST_SECONDS = 0.1
PATIENCE_SECONDS = 60.0
REPEAT_SECONDS = 20.0
TRY_AGAIN = frozenset({502, 503, 504})


@dataclass(frozen=True)
class Question:
    """One request; `sql` makes it a POST of ad-hoc SQL."""

    path: str
    sql: str | None = None

    def request(self, client: httpx.AsyncClient | httpx.Client, name: str = "") -> httpx.Request:
        """The request, to be sent by `client`; `name` is whom TLS asks for."""
        extensions = {"sni_hostname": name} if name else {}
        if self.sql is None:
            return client.build_request("GET", self.path, extensions=extensions)
        return client.build_request("POST", self.path, json={"sql": self.sql}, extensions=extensions)

    def __str__(self) -> str:
        return f"POST {self.sql}" if self.sql else f"GET {self.path}"


@dataclass(frozen=True)
class Edge:
    """Where the users ask: a port of this machine, which answers under `name` with a certificate of `authority`."""

    port: int
    name: str
    authority: ssl.SSLContext
    headers: Mapping[str, str]

    @property
    def url(self) -> str:
        """Its address."""
        return f"https://127.0.0.1:{self.port}"

    def settings(self) -> dict[str, Any]:
        """What a client of it is made with."""
        return {"base_url": self.url, "verify": self.authority, "headers": {"Host": self.name, **self.headers}}

    def ask(self, question: Question) -> httpx.Response:
        """One answer, for a client of its own."""
        with httpx.Client(**self.settings(), timeout=PATIENCE_SECONDS) as client:
            return client.send(question.request(client, self.name))


NAMED = [
    *(Question(f"/api/v1/queries/shops?limit={limit}") for limit in range(1, 11)),
    *(Question(f"/api/v1/queries/shops?shop={shop}") for shop in ("north", "south", "east", "west")),
    *(Question(f"/api/v1/queries/shops?limit=3&format={fmt}") for fmt in ("csv", "arrow", "parquet")),
    Question("/api/v1/queries/quick"),
    Question("/api/v1/queries/uncached"),
]
AD_HOC = [
    *(
        Question(
            "/api/v1/query", f"select shop, sum(amount) as amount, {k} as k from sales group by shop order by shop"
        )
        for k in range(4)
    ),
    *(
        Question(
            "/api/v1/query?format=csv", f"select day, amount from sales where amount % 97 = {k} order by day, amount"
        )
        for k in range(2)
    ),
]
QUESTIONS = [*NAMED, *AD_HOC]


@dataclass(frozen=True)
class Answer:
    """What must come back: the body, and the snapshot it is of."""

    body: bytes
    data_version: str


def right_answers(urls: list[str], headers: Mapping[str, str]) -> dict[Question, Answer]:
    """Each question's answer, the same from every replica; asked before anything is broken."""
    answers: dict[Question, Answer] = {}
    for url in urls:
        with httpx.Client(base_url=url, timeout=30, headers=dict(headers)) as client:
            for question in QUESTIONS:
                response = client.send(question.request(client))
                assert response.status_code == 200, f"{question}: {response.status_code} {response.text[:300]}"
                answer = Answer(response.content, response.headers["X-Data-Version"])
                assert answers.setdefault(question, answer) == answer, f"replicas differ on {question}"
    return answers


@dataclass
class Load:
    """What the users have seen so far; read it while they ask."""

    edge: Edge
    expected: Mapping[Question, Answer]
    repeats: bool = False
    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    cut: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    @property
    def slow(self) -> int:
        """Answers that took longer than the objective allows."""
        return sum(seconds > SLOW_SECONDS for seconds in self.seconds)

    @property
    def slowest(self) -> float:
        """Seconds of the slowest answer."""
        return max(self.seconds, default=0.0)

    def more(self, answers: int, within_seconds: float = 60.0) -> None:
        """Wait for so many more right answers: the fault has lasted that long, as users see it."""
        wanted = self.answered + answers
        wait_until(
            lambda: self.answered >= wanted, within_seconds, what=lambda: f"{answers} more answers; {self.told()}"
        )

    def told(self) -> str:
        """In one line."""
        cut = f", {sum(self.cut.values())} cut and repeated" if self.repeats else ""
        return (
            f"{self.answered} right, {len(self.failed)} failed, {len(self.wrong)} wrong{cut}, "
            f"{self.slow} over {SLOW_SECONDS:g} s (slowest {self.slowest:.1f} s)"
        )

    async def users(self, stop: threading.Event) -> None:
        """All of them, until `stop`."""
        await asyncio.gather(*(self._user(number, stop) for number in range(USERS)))

    async def _user(self, number: int, stop: threading.Event) -> None:
        async with httpx.AsyncClient(**self.edge.settings(), timeout=PATIENCE_SECONDS) as client:
            start = number * 7 % len(QUESTIONS)
            for question in itertools.islice(itertools.cycle(QUESTIONS), start, None):
                if stop.is_set():
                    return
                await self._ask(client, question)
                await asyncio.sleep(REST_SECONDS)

    async def _ask(self, client: httpx.AsyncClient, question: Question) -> None:
        started = time.monotonic()
        while True:
            trouble, may_repeat = await self._attempt(client, question)
            if not (trouble and self.repeats and may_repeat and time.monotonic() - started < REPEAT_SECONDS):
                break
            self.cut[f"{str(question).split()[0]} {trouble[:100]}"] += 1
            await asyncio.sleep(REST_SECONDS)
        self.seconds.append(time.monotonic() - started)
        if trouble:
            self.failed.append(f"{question}: {trouble}")

    async def _attempt(self, client: httpx.AsyncClient, question: Question) -> tuple[str, bool]:
        """Ask once; what went wrong (nothing: empty), and whether asking again could help."""
        try:
            response = await client.send(question.request(client, self.edge.name))
        except httpx.HTTPError as error:
            return repr(error), True
        if response.status_code != 200:
            return f"{response.status_code} {response.text[:200]}", response.status_code in TRY_AGAIN
        right = self.expected[question]
        if Answer(response.content, response.headers.get("X-Data-Version", "")) == right:
            self.answered += 1
        else:
            self.wrong.append(f"{question}: {response.content[:200]!r}, not {right.body[:200]!r}")
        return "", False


@contextlib.contextmanager
def load(edge: Edge, expected: Mapping[Question, Answer], *, repeats: bool = False) -> Iterator[Load]:
    """The users for the length of a block, on a thread of their own."""
    seen, stop = Load(edge, expected, repeats), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(seen.users(stop)), name="users", daemon=True)
    thread.start()
    try:
        seen.more(USERS * 3)
        yield seen
    finally:
        stop.set()
        thread.join(PATIENCE_SECONDS + 10)
        assert not thread.is_alive(), "a user still waits for an answer"


Check = Callable[[], object]
