"""Phrases in which people ask, as a catalogue declares them: short texts, some with `#` where a number stands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

MAX_PHRASE_CHARACTERS = 80
MAX_PHRASES = 200
NUMBER_MARK = "#"
PLACE = re.compile(r"\{(\w+)\}")  # in a query's phrase: a value of that parameter


def _phrase(value: object) -> str:
    # YAML reads `no`, `on` and `yes` without quotes as booleans.
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("expected a word or a phrase; put quotes around it")
    text = str(value).strip()
    if not any(character.isalnum() for character in text):
        raise ValueError("a phrase needs a letter or a digit")
    if len(text) > MAX_PHRASE_CHARACTERS:
        raise ValueError(f"a phrase has at most {MAX_PHRASE_CHARACTERS} characters")
    return text


def plain_value(value: Any) -> Any:
    """A value as YAML reads it, as the text that a query string would bring: `true`, `4`, `GROCERY`."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


_Declared = TypeVar("_Declared")
Phrase = Annotated[str, BeforeValidator(_phrase)]
Phrases = Annotated[tuple[Phrase, ...], Field(max_length=MAX_PHRASES)]
ValueText = Annotated[str, BeforeValidator(plain_value)]
_PHRASES: TypeAdapter[tuple[str, ...]] = TypeAdapter(Phrases)
_WORDS_FOR_VALUES: TypeAdapter[dict[str, tuple[str, ...]]] = TypeAdapter(dict[ValueText, Phrases])


def number_phrases(declared: object) -> tuple[str, ...]:
    """Phrases with one `#` each. Raises `ValueError` saying what is wrong with them."""
    phrases = _validated(_PHRASES, declared)
    for phrase in phrases:
        if fault := number_fault(phrase):
            raise ValueError(fault)
    return phrases


def words_for_values(declared: object) -> Mapping[str, tuple[str, ...]]:
    """Value -> the words for it. Raises `ValueError` saying what is wrong with them."""
    return _validated(_WORDS_FOR_VALUES, declared)


def number_fault(phrase: str) -> str:
    """What is wrong with a phrase that says where a number stands; empty when nothing is."""
    if phrase.count(NUMBER_MARK) != 1 or not any(character.isalpha() for character in phrase):
        return f"{phrase!r} needs one {NUMBER_MARK} where the number stands, and a word"
    return ""


def _validated(adapter: TypeAdapter[_Declared], declared: object) -> _Declared:
    try:
        return adapter.validate_python(declared)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise ValueError(f"{place}: {fault['msg']}" if place else fault["msg"]) from error
