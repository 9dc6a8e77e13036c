"""Which rows of a result a sentence speaks: those asked for, never one that merely stands first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from typing import Any, Literal

from ..catalogue import NamedQuery
from ..says import Says
from .slots import LIMIT_NAMES
from .wishes import Wish

How = Literal["rows", "first", "best", "sum", "none"]
_RANK = "rank"


@dataclass(frozen=True)
class Spoken:
    """What is said of a result of several rows.

    how: the named `rows`, the `first` of a ranking, the `best` by `column`, a `sum` of it, or that there are rows (`none`).
    `columns` and `rows` are those to be said; `column` is the figure that was asked for.
    """

    how: How
    columns: tuple[Mapping[str, str], ...] = ()
    rows: tuple[Sequence[Any], ...] = ()
    column: str = ""


def spoken(query: NamedQuery | None, values: Mapping[str, object], result: Mapping[str, Any], wish: Wish) -> Spoken:
    """What to say of a result with rows. `values` are the bound parameters, `wish` what the question asks for."""
    says = query.says if query is not None else Says()
    found = _Found(result, is_whole=not result.get("truncated") and not _is_full(values, len(result["rows"])))
    if says.rows:
        column = next(iter(says.rows))
        rows = tuple(row for row in result["rows"] if column in found.places and found.text(row, column) in wish.rows)
        return found.said("rows", says, rows, column) if rows else Spoken("none")
    # Rows of one value alone, as of the department asked for, need no adding up by it.
    wish = replace(wish, each=tuple(name for name in wish.each if found.differ(name)))
    if wish.is_best and says.measures:
        return _best(says, query, values, found, wish) or Spoken("none")
    if not wish.is_best and not wish.each and found.is_whole and (column := _first(wish.named, says.adds)):
        total = found.total(result["rows"], column)
        if total is not None:
            return Spoken("sum", (found.column(column),), ((total,),), column)
    return found.said("first", says, (result["rows"][0],)) if _RANK in found.places else Spoken("none")


class _Found:
    """A result's rows by the names of its columns. `is_whole`: no row was left out."""

    def __init__(self, result: Mapping[str, Any], *, is_whole: bool) -> None:
        self.columns: tuple[Mapping[str, str], ...] = tuple(result["columns"])
        self.places = {column["name"]: place for place, column in enumerate(self.columns)}
        self.rows: Sequence[Sequence[Any]] = result["rows"]
        self.is_whole = is_whole

    def column(self, name: str) -> Mapping[str, str]:
        return self.columns[self.places[name]]

    def said(self, how: How, says: Says, rows: Sequence[Sequence[Any]], column: str = "") -> Spoken:
        """Rows with the columns that are declared to be said, the one asked for among them; without any with all."""
        names = (
            [name for name in dict.fromkeys((*says.said, column)) if name in self.places]
            if says.said
            else [*self.places]
        )
        places = [self.places[name] for name in names]
        columns = tuple(self.columns[place] for place in places)
        return Spoken(how, columns, tuple([row[place] for place in places] for row in rows), column)

    def text(self, row: Sequence[Any], name: str) -> str:
        return str(row[self.places[name]])

    def differ(self, name: str) -> bool:
        """Whether the rows have several values in a column."""
        return name in self.places and len({self.text(row, name) for row in self.rows}) > 1

    def is_left_out(self, row: Sequence[Any], not_best: Mapping[str, Sequence[str]]) -> bool:
        return any(name in self.places and self.text(row, name) in texts for name, texts in not_best.items())

    def figure(self, row: Sequence[Any], name: str) -> Decimal | None:
        """A row's figure; None without one."""
        value = row[self.places[name]] if name in self.places else None
        try:
            figure = None if value is None or isinstance(value, bool) else Decimal(str(value))
        except InvalidOperation:
            return None
        return figure if figure is not None and figure.is_finite() else None

    def total(self, rows: Sequence[Sequence[Any]], name: str) -> float | int | None:
        """The rows' figures added up; None without any."""
        figures = [figure for row in rows if (figure := self.figure(row, name)) is not None]
        if not figures:
            return None
        total = sum(figures, Decimal(0))
        return int(total) if "INT" in self.column(name)["type"] else float(total)


def _best(
    says: Says, query: NamedQuery | None, values: Mapping[str, object], found: _Found, wish: Wish
) -> Spoken | None:
    """The row, or the rows added up, with the largest of the figure asked for; None when a row left out may have it."""
    column, is_sorted = _asked(says, query, values, wish)
    rows = [(place, row) for place, row in enumerate(found.rows) if not found.is_left_out(row, says.not_best)]
    if len(wish.each) == 1:
        return _best_of_each(found, rows, wish.each[0], column) if found.is_whole and column in says.adds else None
    figures = [(figure, place) for place, row in rows if (figure := found.figure(row, column)) is not None]
    if not figures or not (found.is_whole or is_sorted or _descend([figure for figure, _ in figures])):
        return None
    largest = max(figure for figure, _ in figures)
    place = next(place for figure, place in figures if figure == largest)
    is_first = place == 0 and (_RANK in found.places or bool(says.ranked_by))
    return found.said("first" if is_first else "best", says, (found.rows[place],), column)


def _asked(says: Says, query: NamedQuery | None, values: Mapping[str, object], wish: Wish) -> tuple[str, bool]:
    """The figure asked for, and whether the rows are sorted by it: the order that was chosen goes before what was named."""
    named = _first(wish.best, says.measures)
    for name, columns in says.ranked_by.items():
        value = values.get(name)
        ranked = columns.get(str(value), "")
        is_chosen = query is not None and value != query.parameters[name].default
        if ranked and (is_chosen or not named or named == ranked):
            return ranked, True
    return named or says.measures[0], False


def _best_of_each(found: _Found, rows: Sequence[tuple[int, Sequence[Any]]], name: str, column: str) -> Spoken | None:
    groups: dict[str, list[Sequence[Any]]] = {}
    for _, row in rows:
        groups.setdefault(found.text(row, name), []).append(row)
    totals = [(total, group[0]) for group in groups.values() if (total := found.total(group, column)) is not None]
    if not totals:
        return None
    largest, row = max(totals, key=lambda entry: entry[0])
    said = (found.column(name), found.column(column))
    return Spoken("best", said, ((row[found.places[name]], largest),), column)


def _first(wishes: Sequence[Sequence[str]], can: Sequence[str]) -> str:
    return next((column for columns in wishes for column in can if column in columns), "")


def _descend(figures: Sequence[Decimal]) -> bool:
    return len(figures) > 1 and all(one >= other for one, other in pairwise(figures))


def _is_full(values: Mapping[str, object], row_count: int) -> bool:
    """Whether as many rows came as were asked for at most: there may be more."""
    limits = [value for name, value in values.items() if name in LIMIT_NAMES and isinstance(value, int)]
    return any(row_count >= limit for limit in limits)
