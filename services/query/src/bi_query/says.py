"""`says`: which rows and columns of a named query's result the sentence of an answer in words speaks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from pydantic import BaseModel, ConfigDict, Field

from .front_matter import CatalogueFile, Problem
from .parameters import Parameter
from .phrases import Phrases, ValueText


class Says(BaseModel):
    """What a question may ask of one query's result.

    rows: the column that names the rows -> its values -> the words for each.
    best_by: columns whose largest value may be asked for, the first when a question names none.
    ranked_by: a parameter -> each of its choices -> the column that the rows are then sorted by, the largest first.
    adds: columns that may be added up over rows.
    each: columns by whose values rows may be added up -> the words for it.
    not_best: column -> its values in rows that are never the best, as `UNKNOWN`.
    said: the columns of a row that are said, in this order; without it as many as fit.

    The words for `best_by`, `ranked_by` and `adds` are the vocabulary's `measures`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rows: dict[str, dict[ValueText, Phrases]] = Field(default_factory=dict, max_length=1)
    best_by: tuple[str, ...] = ()
    ranked_by: dict[str, dict[str, str]] = Field(default_factory=dict, max_length=1)
    adds: tuple[str, ...] = ()
    each: dict[str, Phrases] = Field(default_factory=dict)
    not_best: dict[str, tuple[ValueText, ...]] = Field(default_factory=dict)
    said: tuple[str, ...] = ()

    @property
    def measures(self) -> tuple[str, ...]:
        """The columns whose largest value can be said; the first is meant when none is named."""
        ranked = (column for columns in self.ranked_by.values() for column in columns.values())
        return tuple(dict.fromkeys((*ranked, *self.best_by)))

    def names(self) -> Iterator[tuple[tuple[object, ...], str]]:
        """Every column that is named, with where in the front matter."""
        for kind in ("rows", "each", "not_best"):
            for column in getattr(self, kind):
                yield (kind, column), column
        for kind in ("best_by", "adds", "said"):
            for place, column in enumerate(getattr(self, kind)):
                yield (kind, place), column
        for name, columns in self.ranked_by.items():
            for choice, column in columns.items():
                yield ("ranked_by", name, choice), column


def says_faults(file: CatalogueFile, says: Says, parameters: Mapping[str, Parameter]) -> Iterator[Problem]:
    """What a declaration names that its query's parameters do not have."""
    for name, columns in says.ranked_by.items():
        line = file.line_of("says", "ranked_by", name)
        parameter = parameters.get(name)
        if parameter is None or not parameter.choices:
            yield Problem(file.path, line, f"says.ranked_by: there is no parameter {name!r} with choices")
        elif set(columns) != set(parameter.choices):
            differ = ", ".join(sorted(set(columns) ^ set(parameter.choices)))
            yield Problem(file.path, line, f"says.ranked_by: {name} has other choices: {differ}")


def measure_faults(file: CatalogueFile, says: Says, measures: Mapping[str, Phrases]) -> Iterator[Problem]:
    """Columns that a question could not name, since the vocabulary has no words for them."""
    seen: set[str] = set()
    for keys, column in says.names():
        if keys[0] not in ("best_by", "ranked_by", "adds") or column in measures or column in seen:
            continue
        seen.add(column)
        line = file.line_of("says", *keys)
        yield Problem(file.path, line, f"says.{keys[0]}: vocabulary.yaml has no words for {column!r} in measures")


def column_faults(
    says: Says, lines: Mapping[tuple[object, ...], int], known: Iterable[str]
) -> Iterator[tuple[int, str]]:
    """Columns that the result has not: the line of each, and what to say."""
    names = set(known)
    for keys, column in says.names():
        if column not in names:
            yield lines[keys], f"says.{keys[0]}: the result has no column {column!r}"
