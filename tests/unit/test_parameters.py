"""Parameters of named queries: what is accepted, what is refused, and that equal bindings have equal texts."""

from __future__ import annotations

import math
from datetime import date
from typing import Any

import pytest
from bi_query.errors import BadRequest
from bi_query.parameters import Parameter, bind, canonical_text
from hypothesis import given
from hypothesis import strategies as st

INTEGER = Parameter.declare("n", {"type": "integer", "default": 10, "minimum": -5, "maximum": 100})
BIG = Parameter.declare("n", {"type": "integer", "minimum": -(10**18), "maximum": 10**18})
NUMBER = Parameter.declare("x", {"type": "number", "minimum": -1e6, "maximum": 1e6})
DAY = Parameter.declare("day", {"type": "date", "minimum": date(2017, 1, 1), "maximum": date(2030, 12, 31)})
FLAG = Parameter.declare("flag", {"type": "boolean", "default": False})
TEXT = Parameter.declare("text", {"type": "string", "default": None, "max_length": 5})
CHOICE = Parameter.declare("choice", {"type": "string", "default": "a", "choices": ["a", "b c"]})


@pytest.mark.parametrize(
    ("parameter", "text", "value"),
    [
        (INTEGER, "0", 0),
        (INTEGER, "-5", -5),
        (INTEGER, "100", 100),
        (INTEGER, "+5", 5),
        (INTEGER, "-0", 0),
        (INTEGER, "007", 7),
        (BIG, "999999999999999999", 999_999_999_999_999_999),
        (NUMBER, "1.5", 1.5),
        (NUMBER, "1e3", 1000.0),
        (NUMBER, ".5", 0.5),
        (NUMBER, "5.", 5.0),
        (NUMBER, "-0", 0.0),
        (NUMBER, "1E-400", 0.0),
        (DAY, "2024-02-29", date(2024, 2, 29)),
        (DAY, "2017-01-01", date(2017, 1, 1)),
        (DAY, "2030-12-31", date(2030, 12, 31)),
        (FLAG, "true", True),
        (FLAG, "FALSE", False),
        (FLAG, "1", True),
        (FLAG, "0", False),
        (TEXT, "", ""),
        (TEXT, "🦆🦆🦆🦆🦆", "🦆🦆🦆🦆🦆"),
        (TEXT, " a b ", " a b "),
        (TEXT, "';--", "';--"),
        (CHOICE, "b c", "b c"),
    ],
)
def test_values_within_the_declaration_are_read(parameter: Parameter, text: str, value: Any) -> None:
    read = parameter.parse(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("parameter", "text"),
    [
        *[
            (INTEGER, text)
            for text in ("", " ", "5 ", " 5", "5\n", "1e3", "5.0", "0x10", "1_0", "--5", "+-5", "five", "nan")
        ],
        *[(INTEGER, text) for text in ("٥", "５", "५", "²", "5\u200b", "−5", "5\x00")],
        *[(INTEGER, text) for text in ("101", "-6", "9" * 18, "9" * 19, "9" * 100_000)],
        *[
            (NUMBER, text)
            for text in ("", " 1", "1 ", "1_0", "1,5", "nan", "NaN", "inf", "-Infinity", "1e999", "٥", "１")
        ],
        *[(NUMBER, text) for text in ("1000000.1", "-1e7", "1e", "e5", ".", "0x1p3", "1.2.3", "9" * 1000, "1d3")],
        *[(DAY, text) for text in ("", "2023-02-29", "2024-13-01", "2024-00-10", "2024-1-1", "20240101", "2024-W01-1")],
        *[
            (DAY, text)
            for text in ("2024-01-01T00:00", "2016-12-31", "2031-01-01", "２０２４-01-01", "infinity", "0000-01-01")
        ],
        *[(FLAG, text) for text in ("", "yes", "on", "2", " true", "tru", "None", "１")],
        *[(TEXT, text) for text in ("123456", "\x00", "a\x00b", "🦆" * 6)],
        *[(CHOICE, text) for text in ("", "c", "A", "a ", "b+c")],
    ],
)
def test_anything_else_is_refused_with_what_would_be_accepted(parameter: Parameter, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parameter.parse(text)
    assert caught.value.code == "bad_parameter"
    assert "expected" in caught.value.detail
    assert parameter.name in caught.value.detail
    assert caught.value.extra == {"parameter": parameter.name}
    assert len(caught.value.detail) < 400


@given(st.text())
def test_no_text_gets_past_the_declaration(text: str) -> None:
    for parameter in (INTEGER, NUMBER, DAY, FLAG, TEXT, CHOICE):
        try:
            value = parameter.parse(text)
        except BadRequest:
            continue
        assert parameter._fault(value) == ""
        assert not isinstance(value, float) or math.isfinite(value)


DECLARED = {parameter.name: parameter for parameter in (INTEGER, TEXT, FLAG)}
REQUIRED = {"day": DAY}


def test_missing_parameters_get_their_defaults() -> None:
    assert bind(DECLARED, []) == {"n": 10, "text": None, "flag": False}


@pytest.mark.parametrize(
    ("declared", "given_pairs", "code", "named"),
    [
        (DECLARED, [("N", "1")], "unknown_parameter", "N"),
        (DECLARED, [("", "")], "unknown_parameter", "''"),
        (DECLARED, [("n", "1"), ("n", "1")], "repeated_parameter", "n"),
        (DECLARED, [("n", "1"), ("n", "2")], "repeated_parameter", "n"),
        (DECLARED, [("n", "x")], "bad_parameter", "n"),
        (REQUIRED, [], "missing_parameter", "day"),
        ({}, [("a", "b")], "unknown_parameter", "a"),
    ],
)
def test_what_does_not_match_is_refused(
    declared: dict[str, Parameter], given_pairs: list[tuple[str, str]], code: str, named: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        bind(declared, given_pairs)
    assert caught.value.code == code
    assert named in caught.value.detail


def test_a_long_unknown_name_is_not_echoed_whole() -> None:
    with pytest.raises(BadRequest) as caught:
        bind({}, [("x" * 100_000, "")])
    assert len(caught.value.detail) < 200


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ([("n", "5")], [("n", "+5")], True),
        ([("n", "5")], [("n", "005")], True),
        ([("n", "0")], [("n", "-0")], True),
        ([("n", "10")], [], True),
        ([("flag", "1")], [("flag", "TRUE")], True),
        ([("n", "5"), ("text", "a")], [("text", "a"), ("n", "5")], True),
        ([("text", "")], [], False),
        ([("text", "None")], [], False),
        ([("text", "a&n=1")], [("text", "a"), ("n", "1")], False),
        ([("text", "%41")], [("text", "A")], False),
        ([("n", "1")], [("flag", "1")], False),
    ],
)
def test_equal_bindings_have_equal_texts_and_no_others(
    one: list[tuple[str, str]], other: list[tuple[str, str]], equal: bool
) -> None:
    assert (canonical_text(bind(DECLARED, one)) == canonical_text(bind(DECLARED, other))) is equal


@pytest.mark.parametrize(
    ("declaration", "text"),
    [
        ({"type": "text"}, "type must be one of"),
        ({}, "type must be one of"),
        ({"type": "integer"}, "needs a minimum and a maximum"),
        ({"type": "date", "minimum": date(2017, 1, 1)}, "needs a minimum and a maximum"),
        ({"type": "integer", "minimum": "0", "maximum": 5}, "minimum '0' is not a integer"),
        ({"type": "integer", "minimum": True, "maximum": 5}, "is not a integer"),
        ({"type": "integer", "minimum": 0, "maximum": 5, "default": 6}, "is too large"),
        ({"type": "integer", "minimum": 0, "maximum": 5, "default": "2"}, "is not a integer"),
        ({"type": "string", "choices": ["a"], "default": "b"}, "is not one of the choices"),
        ({"type": "string", "max_length": 2, "examples": ["abc"]}, "is longer than 2"),
        ({"type": "string", "must_be_named": "yes"}, "must_be_named is true or false"),
        ({"type": "string", "maxlength": 2}, "unknown keys ['maxlength']"),
    ],
)
def test_a_wrong_declaration_says_what_is_wrong(declaration: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        Parameter.declare("p", declaration)
    assert text in str(caught.value)
