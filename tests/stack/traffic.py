"""Users of the stack: threads that ask without a pause and keep count of every answer."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import httpx

from tests.support.stack import Stack

Ask = Callable[[httpx.Client, int], httpx.Response]
HEAVY = "select count(*) from sales a, sales b, sales c, sales d where a.amount + b.amount + c.amount + d.amount = 7"


def shops(client: httpx.Client, number: int) -> httpx.Response:
    """A GET that a cache may answer, of a small set of questions; every fifth asks the engine."""
    if number % 5 == 0:
        return client.get("/api/v1/queries/uncached")
    return client.get("/api/v1/queries/shops", params={"limit": number % 20 + 1})


def chat(client: httpx.Client, number: int) -> httpx.Response:
    """A question in words: of the catalogue, or for the model, who does well, is asked twice or has nothing to say."""
    questions = [
        "Shops",
        "Do count whatever was written down",  # the same each time: from a remembered plan
        f"Do count whatever was written down, number {number}",
        f"Do count with a wrong word first, number {number}",
        f"Do count though busy, number {number}",
        f"Do count and talk rubbish once, number {number}",
        f"Something unheard of, number {number}",
    ]
    return client.post("/api/v1/chat", json={"question": questions[number // 13 % len(questions)]})


def everything(client: httpx.Client, number: int) -> httpx.Response:
    """One of all the things that users do, right and wrong, in turn."""
    steps = [
        lambda: shops(client, number),
        lambda: client.get("/api/v1/queries/quick"),
        lambda: client.post("/api/v1/query", json={"sql": f"select count(*) as n, {number % 50} as k from sales"}),
        lambda: client.get(
            "/api/v1/queries/shops",
            params={"format": random.choice(["csv", "arrow", "parquet", "json"]), "limit": number % 100 + 1},
        ),
        lambda: client.get("/api/v1/queries/shops", headers={"Cache-Control": "no-cache"}),
        lambda: client.get("/api/v1/queries/shops", params={"limit": "many"}),
        lambda: client.get("/api/v1/queries/nothing"),
        lambda: client.post("/api/v1/query", json={"sql": "drop table sales"}),
        lambda: client.get("/api/v1/tables"),  # limited below the traffic's rate by the fixture
        lambda: client.get("/api/v1/queries"),
        lambda: client.post("/api/v1/query", json={"sql": "select i.amount from sales i, versions"}),
        lambda: client.delete("/api/v1/cache", params={"query": "quick"}),
        lambda: chat(client, number),
    ]
    if number % 400 == 200:
        return client.post("/api/v1/query", json={"sql": HEAVY})
    return steps[number % len(steps)]()


class Traffic:
    """What the users were answered."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self.slowest = 0.0
        self._lock = threading.Lock()

    @property
    def answered(self) -> int:
        """Answers so far."""
        return sum(self.statuses.values())

    def note(self, status: int, seconds: float, failure: str = "") -> None:
        """Count one answer, or one request without any."""
        with self._lock:
            self.slowest = max(self.slowest, seconds)
            if status:
                self.statuses[status] += 1
            if failure:
                self.failures.append(failure)


@contextlib.contextmanager
def traffic(stack: Stack, ask: Ask = shops, *, users: int = 4, pause_seconds: float = 0.02) -> Iterator[Traffic]:
    """Users who ask for the length of a block, each with a client of its own. A failure is a 5xx or no answer at all."""
    seen, stop = Traffic(), threading.Event()

    def user(first: int) -> None:
        number = first
        with stack.client() as client:
            while not stop.is_set():
                started = time.monotonic()
                try:
                    response = ask(client, number)
                    wrong = f"{response.status_code} {response.text[:200]}" if response.status_code >= 500 else ""
                    seen.note(response.status_code, time.monotonic() - started, wrong)
                except httpx.HTTPError as error:
                    seen.note(0, time.monotonic() - started, repr(error))
                number += 1
                stop.wait(pause_seconds)

    threads = [threading.Thread(target=user, args=(i * 101,), daemon=True) for i in range(users)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(40)
