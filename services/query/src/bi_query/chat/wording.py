"""The sentences of answers, in the question's language. Deterministic: no model ever words the data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..catalogue import NamedQuery

Language = Literal["pt", "en"]
_PORTUGUESE = re.findall(
    r"\w+",
    "quais qual quanto quantos quanta quantas como onde quando que o a os as do da dos das no na nos nas de em por para "
    "com e ou mais maiores menores melhores vendas loja lojas produtos cliente clientes semana mês ano me mostre "
    "lista",
)
_ENGLISH = re.findall(
    r"\w+",
    "which what how much many where when the of in on by for to with and or top best most sales store stores products "
    "customers week month year show me list is are did was were",
)


def language_of(question: str) -> Language:
    """The language a question is written in; English when nothing tells."""
    words = re.findall(r"\w+", question.lower())
    portuguese = sum(word in _PORTUGUESE for word in words) + bool(re.search("[ãõçáéíóúâêô]", question.lower()))
    return "pt" if portuguese > sum(word in _ENGLISH for word in words) else "en"


def answered(
    language: Language, query: NamedQuery | None, values: Mapping[str, object], result: Mapping[str, Any]
) -> str:
    """One or two sentences that say what was found.

    `query` is None for SQL that a model wrote; `values` are the bound parameters; `result` is the JSON document of the
    query API (`columns`, `rows`, `row_count`, `truncated`).
    """
    what = query.title if query is not None else "SQL"
    given = ", ".join(f"{name} = {value}" for name, value in values.items() if value is not None)
    rows = f"{result['row_count']} " + ("linhas" if language == "pt" else "rows")
    return f"{what}" + (f" ({given})" if given else "") + f": {rows}."


def cannot_answer(language: Language, nearest: Sequence[NamedQuery]) -> str:
    """Says that no answer was found, and the nearest named queries there are."""
    titles = "; ".join(query.title for query in nearest)
    if language == "pt":
        return "Não sei responder a esta pergunta." + (f" O mais próximo que há: {titles}." if titles else "")
    return "I cannot answer this question." + (f" The nearest there is: {titles}." if titles else "")
