"""Allowed functions whose arguments could still hurt the process, and what those arguments must be.

Measured on DuckDB 2.0.0, on a read-only locked connection with a memory limit and a time-out:

- `from_json`, `json_transform` with a deeply nested structure, and a cast of deeply nested JSON to VARIANT, end
  the process (stack overflow);
- `repeat`, `lpad`, `rpad`, and a width in the format of `printf` and `format`, take gigabytes that the memory
  limit does not count;
- a JSON path with many `..*` runs for ever, deaf to time-out and interrupt.

So these arguments must be literals, and small. That takes the short texts away; long strings can still be built by
other ways (see the known gaps in `sql_guard`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from .sql_functions import AGGREGATES

MAX_LENGTH: Final = 10_000
MAX_STRUCTURE_CHARS: Final = 10_000
MAX_STRUCTURE_NESTING: Final = 100
MAX_PATH_WILDCARDS: Final = 2

_TYPES_TEXT = """
array bigint bignum binary bit bitstring blob bool boolean bpchar bytea char date datetime dec decimal double enum
float float4 float8 guid hugeint int int1 int128 int16 int2 int32 int4 int64 int8 integer integral interval json
list logical long map null numeric nvarchar oid real row short signed smallint string struct text time
time_ns timestamp timestamp_ms timestamp_ns timestamp_s timestamp_us timestamptz timestamptz_ns timetz tinyint
tuple ubigint uhugeint uint128 uint16 uint32 uint64 uint8 uinteger union usmallint utinyint uuid varbinary varchar
varint
"""
# What a cast may name. Not VARIANT (see above), not GEOMETRY, not types that look into the catalogue (regclass).
TYPES: Final = frozenset(_TYPES_TEXT.split()) | {"time with time zone", "timestamp with time zone"}

_WIDE_FORMAT: Final = re.compile(r"\{[^}]*(?:\d{4}|\{)")
_WIDE_PRINTF: Final = re.compile(r"%[^a-zA-Z%]*(?:\d{4}|\*)")


def _aggregate_name(kind: str, text: str) -> bool:
    return kind == "STRING" and text.lower() in AGGREGATES


def _length(kind: str, text: str) -> bool:
    return kind == "INTEGER" and text.isdecimal() and len(text) < 9 and int(text) <= MAX_LENGTH


def _structure(kind: str, text: str) -> bool:
    nesting = sum(text.count(bracket) for bracket in "[{(")
    small = len(text) <= MAX_STRUCTURE_CHARS and nesting <= MAX_STRUCTURE_NESTING
    # A backslash could spell the type that must not be named.
    return kind == "STRING" and small and "\\" not in text and "variant" not in text.lower()


def _format(kind: str, text: str) -> bool:
    return kind == "STRING" and not _WIDE_FORMAT.search(text.replace("{{", ""))


def _printf(kind: str, text: str) -> bool:
    return kind == "STRING" and not _WIDE_PRINTF.search(text.replace("%%", ""))


def json_path(kind: str, text: str) -> bool:
    """Whether a literal may stand as a JSON path or key."""
    return kind == "INTEGER" or (kind == "STRING" and text.count("*") <= MAX_PATH_WILDCARDS)


Rule = tuple[int, Callable[[str, str], bool], str]

_AGGREGATE: Final[Rule] = (1, _aggregate_name, "the name of an aggregate, such as 'sum'")
_LENGTH: Final[Rule] = (1, _length, f"a whole number up to {MAX_LENGTH}")
_STRUCTURE: Final[Rule] = (1, _structure, f"a structure with at most {MAX_STRUCTURE_NESTING} brackets")
_PATH: Final[Rule] = (1, json_path, f"a path with at most {MAX_PATH_WILDCARDS} wildcards")

# Function -> (index of the argument, what it must satisfy, the same in words).
RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(("aggregate", "array_aggr", "array_aggregate", "list_aggr", "list_aggregate"), _AGGREGATE),
    **dict.fromkeys(("repeat", "lpad", "rpad"), _LENGTH),
    **dict.fromkeys(("from_json", "from_json_strict", "json_transform", "json_transform_strict"), _STRUCTURE),
    "format": (0, _format, "a format without widths over 999"),
    "printf": (0, _printf, "a format without widths over 999"),
    **dict.fromkeys(
        ("->>", "json_extract", "json_extract_path", "json_extract_path_text", "json_extract_string"), _PATH
    ),
    **dict.fromkeys(("json_array_length", "json_exists", "json_keys", "json_type", "json_value"), _PATH),
}
# These take their argument only if they want to.
_OPTIONAL: Final = frozenset({"json_array_length", "json_keys", "json_type"})


def broken_rule(name: str, qualified: bool, arguments: list[dict[str, Any]]) -> str | None:
    """What is wrong with a call of `name`, in words; None if nothing is.

    A qualified call is refused: `x.repeat(9)` and `main.repeat(x, 9)` are one shape with their arguments shifted.
    """
    rule = RULES.get(name)
    if rule is None or (name in _OPTIONAL and len(arguments) == 1 and not qualified):
        return None
    index, allowed, words = rule
    if qualified:
        return f"{name} must be called as {name}(...) here."
    expression = arguments[index]["expression"] if index < len(arguments) else {}
    if not literal(expression, allowed):
        return f"Argument {index + 1} of {name} must be written out as {words}."
    return None


def literal(expression: dict[str, Any], allowed: Callable[[str, str], bool]) -> bool:
    """Whether an expression is one literal, or a list of literals, that `allowed(kind, text)` accepts."""
    if expression.get("class") == "CONSTANT":
        value = expression["literal"]
        return allowed(value["kind"], value["text"])
    if expression.get("function_name") == "list_value":
        return all(literal(item["expression"], allowed) for item in expression["arguments"])
    return False
