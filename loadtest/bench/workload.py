"""What is asked: distinct questions drawn with a seed, and the order in which all systems are asked them.

In the mixed stream the kinds of question take turns; in each, one in ten was never asked before, the others repeat an
earlier one, the first ones most (Zipf). So the share that a cache can answer, and the mix of kinds, are the same after a
hundred requests and after fifty thousand: a fast system, which gets further down the list in a round, gains nothing by it.
"""

from __future__ import annotations

import bisect
import datetime
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .portable_sql import DATES, KINDS, Dialect, portable_sql

SEED = 2017
NEW_SHARE = 0.1
ZIPF_EXPONENT = 1.1
LIMITS = (10, 20, 50)
_FIRST_DAY, _LAST_DAY = datetime.date(2017, 2, 1), datetime.date(2017, 12, 31)
_DAY = datetime.timedelta(days=1)
_SHORTEST_DAYS, _LONGEST_DAYS = 7, 120
# The demo's departments by sales. None: all of them.
DEPARTMENTS = (
    None,
    "GROCERY",
    "DRUG GM",
    "PRODUCE",
    "MEAT",
    "MEAT-PCKGD",
    "DELI",
    "MISCELLANEOUS",
    "PASTRY",
    "NUTRITION",
)


@dataclass(frozen=True)
class Question:
    """One question, as asked of the service (`asked`) and with everything portable SQL needs (`values`)."""

    kind: str
    from_date: datetime.date
    to_date: datetime.date
    department: str | None
    limit: int

    @property
    def asked(self) -> dict[str, str]:
        """The named query's parameters."""
        asked = {"from_date": self.from_date.isoformat(), "to_date": self.to_date.isoformat()}
        if self.department is not None:
            asked["department"] = self.department
        if self.kind in ("top_products", "store_ranking", "suppliers"):
            asked["limit"] = str(self.limit)
        return asked

    @property
    def values(self) -> dict[str, str | int]:
        """Parameters of the portable SQL."""
        first, last = self.from_date, self.to_date
        first_month = ((first - _DAY).replace(day=1) + 32 * _DAY).replace(day=1)
        after_months = (last + _DAY).replace(day=1)
        days = {
            "from_date": first,
            "to_date": last,
            "previous_from_date": first - (last - first + _DAY),
            "week_from": first - first.weekday() * _DAY,
            "first_month": first_month,
            "after_months": after_months,
            "head_to_date": min(last, first_month - _DAY),
            "tail_from_date": max(first_month, after_months),
        }
        values: dict[str, str | int] = {name: day.isoformat() for name, day in days.items()}
        if self.department is not None:
            values["department"] = self.department
        return {**values, "limit": self.limit}

    def sql(self, dialect: Dialect | None = None) -> str:
        """Portable SQL with the values written into it (ANSI dates unless `dialect` says how)."""
        return portable_sql(self.kind, dialect or pasted(self.values), department=self.department is not None)


def pasted(values: Mapping[str, str | int], date_prefix: str = "date ") -> Dialect:
    """Values as literals. They are this module's own: nothing of a client's is pasted."""

    def literal(name: str) -> str:
        value = values[name]
        return str(value) if isinstance(value, int) else f"{date_prefix if name in DATES else ''}'{value}'"

    return Dialect(literal)


class Zipf:
    """Draws among the first `count` ranks, the first most often."""

    def __init__(self, most: int, exponent: float = ZIPF_EXPONENT) -> None:
        self._sums = list(itertools.accumulate(1 / rank**exponent for rank in range(1, most + 1)))

    def draw(self, chance: random.Random, count: int) -> int:
        """An index below `count`."""
        return bisect.bisect(self._sums, chance.random() * self._sums[count - 1], hi=count - 1)


def distinct(kinds: Sequence[str] = KINDS, seed: int = SEED) -> Iterator[Question]:
    """Questions without end, none twice: kinds alike, departments by popularity, periods and limits alike."""
    chance, departments, seen = random.Random(f"{seed}:{kinds}"), Zipf(len(DEPARTMENTS)), set()
    days = (_LAST_DAY - _FIRST_DAY).days
    while True:
        length = chance.randint(_SHORTEST_DAYS, _LONGEST_DAYS)
        first = _FIRST_DAY + datetime.timedelta(days=chance.randint(0, days - length + 1))
        question = Question(
            chance.choice(kinds),
            first,
            first + datetime.timedelta(days=length - 1),
            DEPARTMENTS[departments.draw(chance, len(DEPARTMENTS))],
            chance.choice(LIMITS),
        )
        key = (question.kind, tuple(question.asked.items()))
        if key not in seen:
            seen.add(key)
            yield question


def mixed(count: int, seed: int = SEED) -> list[Question]:
    """The stream all systems are asked: `count` requests, `NEW_SHARE` of them for the first time."""
    chance, zipf = random.Random(seed), Zipf(count)
    sources = {kind: distinct((kind,), seed) for kind in KINDS}
    known: dict[str, list[Question]] = {kind: [] for kind in KINDS}
    stream: list[Question] = []
    for kind in itertools.islice(itertools.cycle(KINDS), count):
        mine = known[kind]
        if not mine or chance.random() < NEW_SHARE:
            mine.append(next(sources[kind]))
            stream.append(mine[-1])
        else:
            stream.append(mine[zipf.draw(chance, len(mine))])
    return stream
