"""All systems must give the same numbers before anything is timed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .systems.base import Rows, System
from .workload import Question

# A cent, or a hundredth of a percent: decimals and binary fractions may round a half differently.
TOLERANCE = 0.0101


class Different(Exception):
    """A system's answer is not the service's; says where."""


def assert_same(reference: System, others: Sequence[System], questions: Iterable[Question]) -> int:
    """Ask everyone; returns how many questions were compared. Raises `Different`."""
    compared = 0
    for question in questions:
        expected = reference.fetch(question)
        for system in others:
            found = difference(expected, system.fetch(question))
            if found is not None:
                raise Different(f"{system.name} answers {question} differently: {found}")
        compared += 1
    return compared


def difference(expected: Rows, rows: Rows) -> str | None:
    """The first difference in the columns that `rows` has, or None. An answer without rows is one: it compares nothing."""
    if not expected or len(rows) != len(expected):
        return f"{len(rows)} rows, expected {len(expected)}"
    for number, (row, wanted) in enumerate(zip(rows, expected, strict=True)):
        for name, value in row.items():
            if name not in wanted:
                return f"column {name} is not the service's"
            if not _equal(value, wanted[name]):
                return f"row {number}, {name}: {value!r}, expected {wanted[name]!r}"
    return None


def _equal(value: object, wanted: object) -> bool:
    if isinstance(value, int | float) and isinstance(wanted, int | float):
        return abs(value - wanted) <= TOLERANCE
    if value is None or wanted is None:
        return value is wanted
    return str(value).removesuffix("T00:00:00").removesuffix(" 00:00:00") == str(wanted)
