"""Parameters of named queries: declared in front matter, parsed from text, bounded, never pasted into SQL."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, get_args
from urllib.parse import quote

from .errors import BadRequest
from .phrases import number_phrases, plain_value, words_for_values

ParameterType = Literal["integer", "number", "string", "boolean", "date"]
Value = int | float | str | bool | date | None

DEFAULT_MAX_LENGTH = 200
_EXACT_INTEGER = 2**53
# Stricter than Python's own readers, which take blanks, underscores, digits of any script and week dates.
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_KEYS = {"type", "default", "description", "minimum", "maximum", "max_length", "choices", "examples", "synonyms", "ask",
         "must_be_named", "if_not_named"}  # fmt: skip
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "boolean": (bool,),
    "date": (date,),
}
_MISSING = object()


@dataclass(frozen=True)
class Parameter:
    """One declared parameter. `required` means there is no default; a default of None makes it optional."""

    name: str
    type: ParameterType
    description: str = ""
    required: bool = True
    default: Value = None
    minimum: Any = None
    maximum: Any = None
    max_length: int = DEFAULT_MAX_LENGTH
    choices: tuple[str, ...] = ()
    examples: tuple[Any, ...] = ()
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # value's text -> words for it in questions
    ask: tuple[str, ...] = ()  # phrases of questions, with # where the number stands
    must_be_named: bool = False  # a question that does not name a value is not about this query
    if_not_named: str | None = None  # the text that a question means which names neither a value nor the parameter

    @classmethod
    def declare(cls, name: str, declaration: Mapping[str, Any]) -> Parameter:
        """Build from front matter; raise ValueError saying what is wrong with the declaration."""
        if unknown := set(declaration) - _KEYS:
            raise ValueError(f"unknown keys {sorted(unknown)}; known are {sorted(_KEYS)}")
        kind: Any = declaration.get("type")
        if kind not in get_args(ParameterType):
            raise ValueError(f"type must be one of {', '.join(get_args(ParameterType))}, not {kind!r}")
        if kind in ("integer", "number", "date") and not {"minimum", "maximum"} <= set(declaration):
            raise ValueError(f"a {kind} needs a minimum and a maximum")
        parameter = cls(
            name,
            kind,
            str(declaration.get("description", "")),
            "default" not in declaration,
            declaration.get("default"),
            declaration.get("minimum"),
            declaration.get("maximum"),
            declaration.get("max_length", DEFAULT_MAX_LENGTH),
            tuple(declaration.get("choices", ())),
            tuple(declaration.get("examples", ())),
            words_for_values(declaration.get("synonyms", {})),
            number_phrases(declaration.get("ask", ())),
            declaration.get("must_be_named", False),
            plain_value(declaration.get("if_not_named")),
        )
        if not isinstance(parameter.must_be_named, bool):
            raise ValueError("must_be_named is true or false")
        for key in ("minimum", "maximum", "default"):
            value = declaration.get(key)
            if value is not None and not _is(value, kind):
                raise ValueError(f"{key} {value!r} is not a {kind}")
        for value in (parameter.default, *parameter.examples):
            if value is not None and (fault := parameter._fault(value)):
                raise ValueError(f"default or example {value!r} {fault}")
        for text in parameter.synonyms:
            if fault := parameter._text_fault(text):
                raise ValueError(f"synonyms of {text!r}: it {fault}")
        assumed = parameter.if_not_named
        if assumed is not None and (fault := parameter._text_fault(assumed)):
            raise ValueError(f"if_not_named: {assumed!r} {fault}")
        if parameter.ask and kind not in ("integer", "number"):
            raise ValueError("ask is for numbers; a text's words go into synonyms")
        return parameter

    def parse(self, text: str) -> Value:
        """The typed value of `text`; raises `BadRequest` (code `bad_parameter`) saying what would be accepted."""
        if fault := self._text_fault(text):
            shown = text if len(text) <= 40 else text[:40] + "…"
            raise BadRequest(
                "bad_parameter",
                f"parameter '{self.name}': {shown!r} {fault}; {self.expectation()}",
                extra={"parameter": self.name},
            )
        return self._convert(text)  # type: ignore[return-value]  # _MISSING was refused above

    def _text_fault(self, text: str) -> str:
        value = self._convert(text)
        return f"is not a {self.type}" if value is _MISSING else self._fault(value)

    def _convert(self, text: str) -> object:
        if self.type == "string":
            return text
        if self.type == "boolean":
            return {"true": True, "false": False, "1": True, "0": False}.get(text.lower(), _MISSING)
        if self.type == "integer":
            return int(text) if _INTEGER.fullmatch(text) else _MISSING
        try:
            if self.type == "date":
                return date.fromisoformat(text) if _DATE.fullmatch(text) else _MISSING
            number = float(text) if _NUMBER.fullmatch(text) else math.nan
        except ValueError:
            return _MISSING
        return number if math.isfinite(number) else _MISSING

    def _fault(self, value: Any) -> str:
        if not _is(value, self.type):
            return f"is not a {self.type}"
        if self.type == "string":
            if len(value) > self.max_length:
                return f"is longer than {self.max_length} characters"
            if "\x00" in value:
                return "contains a NUL character"
            if self.choices and value not in self.choices:
                return "is not one of the choices"
        if self.minimum is not None and value < self.minimum:
            return "is too small"
        if self.maximum is not None and value > self.maximum:
            return "is too large"
        return ""

    def expectation(self) -> str:
        """What a caller may send, in words."""
        if self.choices:
            return "expected one of " + ", ".join(self.choices)
        if self.type == "string":
            return f"expected text of at most {self.max_length} characters"
        if self.type == "boolean":
            return "expected true or false"
        form = "YYYY-MM-DD" if self.type == "date" else f"a {self.type}" if self.type == "number" else "an integer"
        return f"expected {form} from {self.minimum} to {self.maximum}"

    def json_schema(self) -> dict[str, Any]:
        """The parameter's JSON schema for OpenAPI."""
        schema: dict[str, Any] = {"type": "string" if self.type == "date" else self.type}
        if self.type == "date":
            schema |= {"format": "date", "x-minimum": str(self.minimum), "x-maximum": str(self.maximum)}
        elif self.type == "string":
            schema |= {"enum": list(self.choices)} if self.choices else {"maxLength": self.max_length}
        elif self.type != "boolean":
            schema |= {"minimum": self.minimum, "maximum": self.maximum}
        if self.default is not None:
            schema["default"] = _plain(self.default)
        return schema

    def describe(self) -> dict[str, Any]:
        """The parameter as the catalogue lists it."""
        entry: dict[str, Any] = {"name": self.name, "type": self.type, "required": self.required}
        entry |= {"default": _plain(self.default), "description": self.description}
        if self.type == "string":
            entry |= {"choices": list(self.choices)} if self.choices else {"max_length": self.max_length}
        elif self.type != "boolean":
            entry |= {"minimum": _plain(self.minimum), "maximum": _plain(self.maximum)}
        if self.examples:
            entry["examples"] = [_plain(example) for example in self.examples]
        if self.if_not_named is not None:
            entry["if_not_named"] = self.if_not_named
        return entry


def bind(parameters: Mapping[str, Parameter], given: Iterable[tuple[str, str]]) -> dict[str, Value]:
    """Values for every declared parameter from `given` name/text pairs.

    Raises `BadRequest`: `unknown_parameter`, `repeated_parameter`, `missing_parameter` or `bad_parameter`.
    """
    texts: dict[str, str] = {}
    for name, text in given:
        if name not in parameters:
            known = ", ".join(parameters) or "none"
            raise BadRequest("unknown_parameter", f"unknown parameter {name[:60]!r}; this query takes: {known}")
        if name in texts:
            raise BadRequest("repeated_parameter", f"parameter '{name}' is given more than once; give it once")
        texts[name] = text
    values: dict[str, Value] = {}
    for name, parameter in parameters.items():
        if name in texts:
            values[name] = parameter.parse(texts[name])
        elif parameter.required:
            message = f"parameter '{name}' is required; {parameter.expectation()}"
            raise BadRequest("missing_parameter", message, extra={"parameter": name})
        else:
            values[name] = parameter.default
    return values


def texts(given: Mapping[str, str | float | bool | None]) -> list[tuple[str, str]]:
    """JSON's scalars as a query string would bring them; null means not given."""
    return [(name, _text(value)) for name, value in given.items() if value is not None]


def canonical_text(values: Mapping[str, object]) -> str:
    """`name=value` pairs sorted by name, percent-encoded, NULLs left out: equal for equal bindings."""
    return "&".join(
        f"{name}={quote(str(_plain(value)), safe='')}" for name, value in sorted(values.items()) if value is not None
    )


def _is(value: object, kind: str) -> bool:
    if isinstance(value, bool) and kind != "boolean":
        return False
    return isinstance(value, _PYTHON_TYPES[kind])


def _plain(value: object) -> object:
    if isinstance(value, bool):
        return value
    return value.isoformat() if isinstance(value, date) else value


def _text(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_INTEGER:
        return str(int(value))  # to JSON 10.0 and 10 are one number, and some clients write all of theirs so
    return str(value)
