"""`vocabulary.yaml`: the words in which people ask for what a catalogue has. Declared, never read from data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from .errors import BadRequest
from .front_matter import CatalogueFile, Problem, read_yaml, validated
from .parameters import Parameter
from .phrases import Language, Phrase, Phrases, ValueText, number_fault


class Vocabulary(BaseModel):
    """What all named queries share.

    same: groups of words that mean the same. values: parameter -> value -> the words for it. numbers: parameter -> phrases
    with `#` where its number stands. absent: words for what the data do not hold; a question with one is not answered by
    what is left of it. first_week: the Monday of week 1 where the data count weeks themselves. labels: what columns and
    parameters are called in the sentences of an answer; without one by their own name. measures: column -> the words in
    which people ask for its figures, for every query whose `says` names it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    same: tuple[Phrases, ...] = ()
    values: dict[str, dict[ValueText, Phrases]] = Field(default_factory=dict)
    numbers: dict[str, Phrases] = Field(default_factory=dict)
    absent: Phrases = ()
    first_week: date | None = None
    labels: dict[Language, dict[str, Phrase]] = Field(default_factory=dict)
    measures: dict[str, Phrases] = Field(default_factory=dict)


def load_vocabulary(path: Path, queries: Iterable[Mapping[str, Parameter]], problems: list[Problem]) -> Vocabulary:
    """The folder's vocabulary, empty where there is none; what is wrong with it is added to `problems`, with its line.

    `queries` are the parameters of each named query: what no query takes is a fault. They are not looked at when there are
    problems already, since a faulty query is not among them.
    """
    are_whole = not problems
    file = read_yaml(path, problems) if path.exists() else None
    vocabulary = validated(Vocabulary, file, problems) if file is not None else None
    if file is None or vocabulary is None:
        return Vocabulary()
    if vocabulary.first_week is not None and vocabulary.first_week.weekday() != 0:
        problems.append(Problem(path, file.line_of("first_week"), "first_week: a week begins on a Monday"))
    problems += _words_twice(file, vocabulary)
    by_name: dict[str, list[Parameter]] = {}
    for parameters in queries:
        for parameter in parameters.values():
            by_name.setdefault(parameter.name, []).append(parameter)
    if are_whole:
        problems += _value_faults(file, vocabulary, by_name)
        problems += _number_faults(file, vocabulary, by_name)
    return vocabulary


def _words_twice(file: CatalogueFile, vocabulary: Vocabulary) -> Iterable[Problem]:
    seen: dict[str, int] = {}
    for number, group in enumerate(vocabulary.same):
        for place, phrase in enumerate(group):
            if (other := seen.setdefault(phrase.lower(), number)) != number:
                message = f"same: {phrase!r} stands in groups {other + 1} and {number + 1}"
                yield Problem(file.path, file.line_of("same", number, place), message)


def _value_faults(
    file: CatalogueFile, vocabulary: Vocabulary, by_name: Mapping[str, list[Parameter]]
) -> Iterable[Problem]:
    for name, values in vocabulary.values.items():
        if name not in by_name:
            yield Problem(file.path, file.line_of("values", name), f"values: no named query takes {name!r}")
            continue
        for value in values:
            faults = [_fault(parameter, value) for parameter in by_name[name]]
            if all(faults):
                yield Problem(file.path, file.line_of("values", name, value), f"values.{name}: {faults[0]}")


def _number_faults(
    file: CatalogueFile, vocabulary: Vocabulary, by_name: Mapping[str, list[Parameter]]
) -> Iterable[Problem]:
    for name, phrases in vocabulary.numbers.items():
        if not any(parameter.type in ("integer", "number") for parameter in by_name.get(name, ())):
            yield Problem(file.path, file.line_of("numbers", name), f"numbers: no named query takes a number {name!r}")
        for place, phrase in enumerate(phrases):
            if fault := number_fault(phrase):
                yield Problem(file.path, file.line_of("numbers", name, place), f"numbers.{name}: {fault}")


def _fault(parameter: Parameter, value: str) -> str:
    try:
        parameter.parse(value)
    except BadRequest as error:
        return error.detail
    return ""
