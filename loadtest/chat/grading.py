"""Whether an answer is right. Strict: the right query and every stated parameter, none made up; or the right rows.

Apart from that, where a question says so, whether the answer's sentence holds the figures that were asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from .questions import Choice, Question, shown

Defaults = Mapping[str, Mapping[str, Any]]
"""Query -> parameter -> default, as the service's catalogue lists them."""
_HALF_A_CENT = 0.00501
_SHOWN_ROWS = 3


@dataclass(frozen=True)
class Reply:
    """What the service said to one question: HTTP status, JSON document, seconds until it was read."""

    status: int
    document: Mapping[str, Any]
    seconds: float

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens that it cost."""
        tokens = self.document.get("tokens") or {}
        return int(tokens.get("prompt", 0)), int(tokens.get("completion", 0))

    @property
    def by_model(self) -> bool:
        """Whether a model had a part in it: it cost tokens, or is SQL of no named query (remembered, it costs nothing)."""
        is_written = self.document.get("query") is None and self.document.get("sql") is not None
        return is_written or sum(self.tokens) > 0

    @property
    def refused(self) -> bool:
        """Whether it is a plain "cannot answer"."""
        return self.status == 200 and all(self.document.get(key) is None for key in ("query", "sql", "result"))


@dataclass(frozen=True)
class Verdict:
    """One question's outcome, with what was expected and what came in words."""

    question: Question
    reply: Reply
    right: bool
    expected: str
    chosen: str
    is_said: bool | None = None
    """Whether the sentence holds what it must; None where the question does not say what."""


def grade(question: Question, reply: Reply, defaults: Defaults, *, with_model: bool) -> Verdict:
    """The verdict. `with_model` False: a question that only SQL answers must be refused."""
    if question.kind == "named":
        right = any(_is_choice(choice, reply, defaults) for choice in question.choices)
        expected = " or ".join(map(str, question.choices))
    elif question.kind == "sql" and with_model:
        right = _has_rows(question, reply)
        expected = f"rows {_rows_shown(question.result)}"
    else:
        right, expected = reply.refused, "cannot answer"
    return Verdict(question, reply, right, expected, _chosen(reply, defaults), _is_said(question, reply))


def _is_said(question: Question, reply: Reply) -> bool | None:
    if not question.says:
        return None
    sentence = str(reply.document.get("answer", ""))
    return reply.status == 200 and all(text in sentence for text in question.says)


def _is_choice(choice: Choice, reply: Reply, defaults: Defaults) -> bool:
    chosen = reply.document
    if reply.status != 200 or chosen.get("query") != choice.query or not isinstance(chosen.get("result"), Mapping):
        return False
    params: Mapping[str, Any] = chosen.get("params") or {}
    own = defaults.get(choice.query, {})
    stated = all(name in params and _same(value, params[name]) for name, value in choice.params.items())
    made_up = [
        name
        for name, value in params.items()
        if name not in choice.params
        and value is not None
        and not any(_same(allowed, value) for allowed in (own.get(name), *choice.may.get(name, ())))
    ]
    return stated and not made_up


def _has_rows(question: Question, reply: Reply) -> bool:
    result = reply.document.get("result")
    if reply.status != 200 or not isinstance(result, Mapping):
        return False
    left = [list(row) for row in result.get("rows", ())]
    if len(left) != len(question.result):
        return False
    for expected in question.result:
        candidates = left[:1] if question.ordered else left
        found = next((row for row in candidates if _holds(row, expected)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _holds(row: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Whether each expected value stands in the row: a model may name more columns, in an order of its own."""
    cells = list(row)
    for value in expected:
        place = next((place for place, cell in enumerate(cells) if _same(value, cell)), None)
        if place is None:
            return False
        del cells[place]
    return True


def _same(expected: Any, got: Any) -> bool:
    """Equal as JSON carries them: dates as text, decimals as numbers or text. Floats up to a rounded cent."""
    if expected is None or got is None or isinstance(expected, bool) or isinstance(got, bool):
        return expected is got
    if isinstance(expected, date):
        return str(got).removesuffix("Z").removesuffix("00:00:00").rstrip("T ") == expected.isoformat()
    if isinstance(expected, int | float):
        try:
            return abs(float(got) - expected) <= (_HALF_A_CENT if isinstance(expected, float) else 0)
        except (TypeError, ValueError):
            return False
    return bool(expected == got)


def _chosen(reply: Reply, defaults: Defaults) -> str:
    document = reply.document
    if reply.status != 200:
        return f"HTTP {reply.status} {document.get('code', '')}".rstrip()
    if reply.refused:
        return "cannot answer" + _surely(document)
    if (query := document.get("query")) is not None:
        own = defaults.get(query, {})
        params = {n: v for n, v in (document.get("params") or {}).items() if not _same(own.get(n), v)}
        return shown(query, params) + _surely(document)
    rows = (document.get("result") or {}).get("rows", ())
    return f"SQL {' '.join(str(document.get('sql')).split())} -> rows {_rows_shown(rows)}"


def _surely(document: Mapping[str, Any]) -> str:
    confidence = document.get("confidence")
    return f" at {confidence:.3f}" if isinstance(confidence, int | float) else ""


def _rows_shown(rows: Sequence[Sequence[Any]]) -> str:
    first = "; ".join(", ".join(map(str, row)) for row in rows[:_SHOWN_ROWS])
    return f"[{first}]" if len(rows) <= _SHOWN_ROWS else f"[{first}; … {len(rows)} in all]"
