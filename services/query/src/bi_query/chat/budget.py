"""Tokens: how many a question used, and how many a key, and all keys together, may use per day (UTC).

Counted twice: an estimate before the model is asked, so that questions asked at once cannot all slip under the limit, and
what it really took after. Counts are added up in Redis; with Redis away each replica knows its own alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import cast

from ..errors import RateLimited
from ..metrics import Metrics
from ..redis_link import PREFIX, Link
from ..settings import Settings

DAY_SECONDS = 86_400
_SHARE_SECONDS = 0.5
_KEPT_MS = 2 * DAY_SECONDS * 1000
_MOST_KEYS = 10_000
_ALL = ""
_ADD = """
local totals = {}
for i, name in ipairs(KEYS) do
  totals[i] = redis.call('incrby', name, ARGV[i])
  redis.call('pexpire', name, ARGV[#KEYS + 1])
end
return totals
"""


@dataclass
class Tokens:
    """Tokens used; `estimated` where the model's server did not say all of it."""

    prompt: int = 0
    completion: int = 0
    estimated: bool = False

    def add(self, other: Tokens) -> None:
        """Add what another request used."""
        self.prompt += other.prompt
        self.completion += other.completion
        self.estimated = self.estimated or other.estimated

    def document(self) -> dict[str, int | bool]:
        """As answers and the audit log show them."""
        counted: dict[str, int | bool] = {"prompt": self.prompt, "completion": self.completion}
        return {**counted, "estimated": True} if self.estimated else counted


@dataclass
class Asking:
    """One question's use of the model. `who`: whose budget; `is_streamed`: whether its asker reads along."""

    who: str
    ends_at: float
    """On the monotonic clock."""
    is_streamed: bool = False
    tokens: Tokens = field(default_factory=Tokens)

    @property
    def seconds_left(self) -> float:
        """Until the question must have its answer; 0 when that is past."""
        return max(0.0, self.ends_at - time.monotonic())


@dataclass
class _Count:
    total: int = 0
    """By all replicas, as last heard, and what this one has added since."""
    own: int = 0
    unshared: int = 0

    def add(self, tokens: int) -> None:
        self.total += tokens
        self.own += tokens
        self.unshared += tokens


class TokenBudget:
    """The day's counts (event loop only)."""

    def __init__(
        self, settings: Settings, metrics: Metrics, link: Link | None, clock: Callable[[], float] = time.time
    ) -> None:
        self._of_all, self._of_key = settings.llm_tokens_per_day, settings.llm_tokens_per_key_per_day
        self._refusals = metrics.llm_budget_refusals
        self._link = link
        self._clock = clock
        self._day = 0
        self._counts: OrderedDict[str, _Count] = OrderedDict()
        metrics.llm_budget.set(self._of_all)
        metrics.llm_budget_used.set_function(lambda: self._count(_ALL).total)
        metrics.llm_budget_key_used.set_function(self._key_used_ratio)

    async def check(self, who: str) -> None:
        """Raises `RateLimited` (`token_budget_spent`) when `who`, or all together, have used up the day's tokens."""
        if self._of_all or self._of_key:
            await self._exchange([_ALL, who])
        of_all, of_key = (self._of_all, _ALL, "all", "of all keys together"), (self._of_key, who, "key", "of this key")
        for limit, name, scope, whose in (of_all, of_key):
            if limit and self._count(name).total >= limit:
                self._refusals.labels(scope).inc()
                seconds = DAY_SECONDS - self._clock() % DAY_SECONDS
                detail = f"the day's {limit} tokens {whose} are spent; there are new ones at midnight (UTC)"
                raise RateLimited("token_budget_spent", detail, retry_after_seconds=seconds)

    def add(self, who: str, tokens: int, day: int | None = None) -> int:
        """Count `tokens`, and say on which day; a negative number gives back what that `day` was charged too much.

        Nothing is counted once that day is over.
        """
        of_all, of_who = self._count(_ALL), self._count(who)
        if day is None or day == self._day:
            of_all.add(tokens)
            of_who.add(tokens)
        return self._day

    def _count(self, name: str) -> _Count:
        day = int(self._clock() // DAY_SECONDS)
        if day != self._day:
            self._day = day
            self._counts.clear()
        count = self._counts.get(name)
        if count is None:
            if len(self._counts) >= _MOST_KEYS:  # without a key file anything names a client
                self._count(_ALL)
                self._counts.move_to_end(_ALL)
                self._counts.popitem(last=False)
            count = self._counts[name] = _Count()
        return count

    def _key_used_ratio(self) -> float:
        self._count(_ALL)  # of today
        most = max((count.total for name, count in self._counts.items() if name != _ALL), default=0)
        return most / self._of_key if self._of_key else 0.0

    async def share(self) -> None:
        """Exchange counts with the other replicas, for ever. Redis away: local counts go on."""
        if self._link is None:
            return
        while True:
            await asyncio.sleep(_SHARE_SECONDS)
            await self._link.probe()
            await self._exchange([_ALL, *[name for name, count in self._counts.items() if count.unshared][:1000]])

    async def _exchange(self, names: list[str]) -> None:
        link = self._link
        if link is None:
            return
        counts = {name: self._count(name) for name in names}
        sent = {name: count.unshared for name, count in counts.items()}
        keys = [f"{PREFIX}llm:{self._day}:{f'key:{name}' if name else 'all'}" for name in counts]
        for count in counts.values():
            count.unshared = 0

        async def add() -> list[int]:
            answer = link.client.eval(_ADD, len(keys), *keys, *sent.values(), _KEPT_MS)
            return [int(total) for total in await cast("Awaitable[list[int]]", answer)]

        totals = await link.ask("llm_budget", add, None)
        # One that was carried out although its answer came too late counts twice: the budget errs on the safe side.
        for place, (name, count) in enumerate(counts.items()):
            if totals is None:
                count.unshared += sent[name]
            else:  # a Redis that has forgotten knows less than this replica used by itself
                count.total = max(totals[place] + count.unshared, count.own)

    async def close(self) -> None:
        """Share what was not shared yet."""
        await self._exchange([_ALL, *[name for name, count in self._counts.items() if count.unshared]])
