"""What people ask: named queries with values that occur in the data, and ad-hoc SQL. Read from the live service.

Popularity follows Zipf's law: a few questions are asked all the time, most hardly ever; that is what a cache lives on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import accumulate
from typing import Any, TypeVar

AD_HOC = "ad_hoc"
NAMED_ENDPOINT, AD_HOC_ENDPOINT = "/api/v1/queries/{name}", "/api/v1/query"
ZIPF = 1.1
TILES = 6
_VALUES = 200
# Ad-hoc grouping is asked of tables that people group by hand; the demo's promotions (21 M rows) are counted only.
_GROUPED_ROWS = 3_000_000
_TEXT, _WHOLE = frozenset({"VARCHAR"}), frozenset({"INTEGER", "BIGINT", "SMALLINT", "UINTEGER", "UBIGINT", "HUGEINT"})

_T = TypeVar("_T")
Ask = Callable[[str, dict[str, Any] | None], Any]


@dataclass(frozen=True)
class Question:
    """One request: a named query with parameters, or SQL with parameters when `sql` is set."""

    query: str
    parameters: dict[str, Any] = field(default_factory=dict)
    sql: str | None = None


class Zipf:
    """Draws items so that the n-th is drawn 1/n**`ZIPF` as often as the first."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items
        self._weights = list(accumulate(1 / rank**ZIPF for rank in range(1, len(items) + 1)))

    def draw(self, chance: random.Random) -> Any:
        """One item; IndexError when there are none."""
        return chance.choices(self._items, cum_weights=self._weights)[0]


class Questions:
    """The catalogue and the data's values, as a source of questions."""

    def __init__(
        self, catalogue: Sequence[dict[str, Any]], tables: Sequence[dict[str, Any]], values: dict[str, list[Any]]
    ) -> None:
        self._parameters = {query["name"]: query["parameters"] for query in catalogue}
        self.names = sorted(self._parameters)
        if not self.names:
            raise ValueError("the service has no named query to ask")
        self._popular = Zipf(random.Random(4).sample(self.names, len(self.names)))
        self._values = {name: Zipf(found) for name, found in values.items() if found}
        self._everything = values
        self._sql = list(_templates(tables, values))

    def exploring(self, chance: random.Random) -> Question:
        """An analyst's question: popular queries and popular values are asked most."""
        return self.of(self._popular.draw(chance), chance)

    def rare(self, chance: random.Random) -> Question:
        """A question from the long tail: any query, any value, all alike."""
        name = chance.choice(self.names)
        return Question(name, self._draw(name, chance, chance.choice))

    def of(self, name: str, chance: random.Random) -> Question:
        """A question to one query, with popular values."""
        return Question(name, self._draw(name, chance, lambda items: Zipf(items).draw(chance)))

    def dashboard(self, number: int) -> list[Question]:
        """The tiles of a dashboard, always the same: queries as they come, some for one popular value."""
        chance = random.Random(number)
        chosen = chance.sample(self.names, min(TILES, len(self.names)))
        return [Question(name) if chance.random() < 0.7 else self.of(name, chance) for name in chosen]

    def ad_hoc(self, chance: random.Random) -> Question | None:
        """SQL over the live tables; None when there are none."""
        if not self._sql:
            return None
        sql, column = Zipf(self._sql).draw(chance)
        parameters = {} if column is None else {"value": self._values[column].draw(chance)}
        return Question(AD_HOC, parameters, sql)

    def _draw(self, name: str, chance: random.Random, choose: Callable[[Sequence[Any]], Any]) -> dict[str, Any]:
        given: dict[str, Any] = {}
        declared = {parameter["name"]: parameter for parameter in self._parameters[name]}
        for parameter in declared.values():
            if parameter["name"] in given or not (parameter["required"] or chance.random() < 0.35):
                continue
            if parameter["type"] == "date":
                given |= _period(declared, parameter, choose)
            else:
                value = self._value(parameter, choose)
                if value is not None:
                    given[parameter["name"]] = value
        return given

    def _value(self, parameter: dict[str, Any], choose: Callable[[Sequence[Any]], Any]) -> Any:
        name, kind = parameter["name"], parameter["type"]
        if kind == "boolean":
            return choose(["true", "false"])
        if parameter.get("choices"):
            return choose(parameter["choices"])
        if name in self._everything:
            return choose(self._everything[name])
        if kind == "string":
            return choose(parameter["examples"]) if parameter.get("examples") else None
        start = parameter["default"] or parameter["minimum"] or 1
        sizes = (
            [start, start * 2, start * 5, start / 2] if kind == "number" else [start, start * 2, start * 5, start // 2]
        )
        return choose([min(max(size, parameter["minimum"]), parameter["maximum"]) for size in sizes])


def _period(
    declared: dict[str, Any], parameter: dict[str, Any], choose: Callable[[Sequence[Any]], Any]
) -> dict[str, str]:
    """Whole months inside the default period, newest first: both ends at once, so that from is never after to."""
    first, last = (declared.get(name, {}).get("default") for name in ("from_date", "to_date"))
    if not first or not last or parameter["name"] not in ("from_date", "to_date"):
        return {} if parameter["default"] else {parameter["name"]: parameter["minimum"]}
    start, end = (
        date.fromisoformat(first),
        min(date.fromisoformat(last), date.fromisoformat(first) + timedelta(days=800)),
    )
    months = []
    while start <= end:
        after = (start.replace(day=1) + timedelta(days=32)).replace(day=1)
        months.append({"from_date": start.isoformat(), "to_date": min(after - timedelta(days=1), end).isoformat()})
        start = after
    chosen: dict[str, str] = choose(months[::-1])
    return chosen


def _templates(tables: Sequence[dict[str, Any]], values: dict[str, list[Any]]) -> list[tuple[str, str | None]]:
    """Ad-hoc SQL as analysts write it, with the column whose value it takes."""
    made: list[tuple[str, str | None]] = []
    for table in tables:
        name = _quoted(table["name"])
        made.append((f"SELECT count(*) AS n FROM {name}", None))
        if (table.get("rows") or 0) > _GROUPED_ROWS:
            continue
        for column in table["columns"]:
            if column["name"] in values:
                quoted = _quoted(column["name"])
                made.append(
                    (f"SELECT {quoted}, count(*) AS n FROM {name} GROUP BY 1 ORDER BY n DESC, 1 LIMIT 20", None)
                )
                made.append((f"SELECT count(*) AS n FROM {name} WHERE {quoted} = $value", column["name"]))
    random.Random(7).shuffle(made)
    return made


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def read_questions(ask: Ask, only: Collection[str] = ()) -> Questions:
    """The questions of a live service. `ask(path, body)` gives a JSON document: GET without a body, POST with one.

    Values of a parameter are those of the smallest table that has a column of its name, the most frequent first.
    """
    catalogue = [q for q in ask("/api/v1/queries", None)["queries"] if not only or q["name"] in only]
    tables = ask("/api/v1/tables", None)["tables"]
    wanted = {p["name"] for q in catalogue for p in q["parameters"] if p["type"] in ("string", "integer")}
    values: dict[str, list[Any]] = {}
    for name in sorted(wanted):
        holders = [t for t in tables if any(c["name"] == name and c["type"] in _TEXT | _WHOLE for c in t["columns"])]
        if not holders:
            continue
        table = min(holders, key=lambda t: t.get("rows") or 0)
        column = _quoted(name)
        sql = f"SELECT {column}, count(*) AS n FROM {_quoted(table['name'])} WHERE {column} IS NOT NULL"
        document = ask(AD_HOC_ENDPOINT, {"sql": f"{sql} GROUP BY 1 ORDER BY n DESC, 1 LIMIT {_VALUES}"})
        values[name] = [row[0] for row in document["rows"]]
    return Questions(catalogue, tables, values)
