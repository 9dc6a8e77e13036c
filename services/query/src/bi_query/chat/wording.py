"""The sentences of answers, in the question's language. Deterministic: no model ever words the data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from ..catalogue import NamedQuery
from ..lines import shown
from ..phrases import Language
from .slots import period_parameters
from .spoken import spoken
from .stop_words import ENGLISH_WORDS, PORTUGUESE_WORDS
from .wishes import Wish
from .words import words_of

__all__ = ["Language", "answered", "cannot_answer", "language_of"]

_MOST_COLUMNS = 8
_MOST_DESCRIPTIONS = 5  # more of them only where figures leave room
_MOST_CHARACTERS = 80
_NO_WISH = Wish()
_NUMERIC = re.compile(r"(U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|INTEGER|DECIMAL|DOUBLE|FLOAT|REAL)\b")
_PORTUGUESE_ENDING = re.compile(
    r"\w{2,}(cao|coes|mente|dade|dades|eiro|eira|eiros|eiras|inho|inha|agem|avam|aram|emos|amos)"
)
_MORE_PORTUGUESE = frozenset(
    {
        "vendas",
        "loja",
        "lojas",
        "produtos",
        "produto",
        "clientes",
        "cliente",
        "semana",
        "mes",
        "ano",
        "mais",
        "vendeu",
        "cestas",
    }
)
_MORE_ENGLISH = frozenset(
    {
        "sales",
        "store",
        "stores",
        "products",
        "product",
        "customers",
        "week",
        "month",
        "year",
        "best",
        "weekly",
        "sold",
    }
)
_NAMING = re.compile(r"(^|_)(rank|id|year|ano|code|codigo|week|semana|hour|hora)$")
_MONTHS: dict[Language, tuple[str, ...]] = {
    "en": ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
           "December"),
    "pt": ("janeiro", "fevereiro", "março", "abril", "maio", "junho", "julho", "agosto", "setembro", "outubro", "novembro",
           "dezembro"),
}  # fmt: skip
_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "sql": "The result",
        "rows": "{count} rows",
        "most": "the first {count} rows, there are more",
        "none": "no rows: nothing in the data fits",
        "all": "{count} rows, all in the result",
        "first": "The first: {row}.",
        "best": "The highest {label}: {row}.",
        "sum": "In total: {row}.",
        "in": "for {period}",
        "range": "from {first} to {last}",
        "since": "from {first} on",
        "until": "up to {last}",
        "with": "with {filters}",
        "true": "yes",
        "false": "no",
        "empty": "empty",
        "cannot": "I cannot answer this question with the data and queries I have.",
        "nearest": "The nearest there is: {titles}.",
    },
    "pt": {
        "sql": "O resultado",
        "rows": "{count} linhas",
        "most": "as primeiras {count} linhas, há mais",
        "none": "nenhuma linha: nada nos dados corresponde",
        "all": "{count} linhas, todas no resultado",
        "first": "A primeira: {row}.",
        "best": "O valor mais alto de {label}: {row}.",
        "sum": "No total: {row}.",
        "in": "em {period}",
        "range": "de {first} a {last}",
        "since": "de {first} em diante",
        "until": "até {last}",
        "with": "com {filters}",
        "true": "sim",
        "false": "não",
        "empty": "vazio",
        "cannot": "Não consigo responder a esta pergunta com os dados e as consultas que tenho.",
        "nearest": "O mais próximo que há: {titles}.",
    },
}


def language_of(question: str) -> Language:
    """The language a question is written in; English when nothing tells."""
    portuguese = english = 0
    for word in words_of(question):
        text = word.text
        portuguese += text in PORTUGUESE_WORDS or text in _MORE_PORTUGUESE or bool(_PORTUGUESE_ENDING.fullmatch(text))
        english += text in ENGLISH_WORDS or text in _MORE_ENGLISH
    portuguese += bool(re.search("[ãõçáéíóúâêô]", question[:2000].lower()))
    return "pt" if portuguese > english else "en"


def answered(
    language: Language,
    query: NamedQuery | None,
    values: Mapping[str, object],
    result: Mapping[str, Any],
    wish: Wish = _NO_WISH,
) -> str:
    """One or two sentences that say what was found, for which period and filters, and of several rows those asked for.

    `query` is None for SQL that a model wrote; `values` are the bound parameters; `result` is the JSON document of the
    query API (`columns`, `rows`, `row_count`, `truncated`); `wish` is what the question asks of it. Texts of the data are
    shortened and shown without control characters.
    """
    words, rows = _WORDS[language], result["rows"]
    head = _head(language, query, values)
    if not rows:
        return f"{head}: {words['none']}."
    labels = _labels(language, query)
    if len(rows) == 1 and not result.get("truncated"):
        return f"{head}: {_row(language, labels, result['columns'], rows[0])}."
    said = spoken(query, values, result, wish)
    rows_said = [_worded(labels, said.columns, row) for row in said.rows] if said.how == "rows" else said.rows
    row = "; ".join(_row(language, labels, said.columns, row, said.column) for row in rows_said)
    if said.how == "rows":
        return f"{head}: {row}."
    how = "most" if result.get("truncated") else "all" if said.how == "none" else "rows"
    count = words[how].format(count=_number(language, len(rows)))
    if said.how == "none":
        return f"{head}: {count}."
    return f"{head}: {count}. {words[said.how].format(row=row, label=_label(labels, said.column))}"


def cannot_answer(language: Language, nearest: Sequence[NamedQuery]) -> str:
    """Says that no answer was found, and the nearest named queries there are."""
    words = _WORDS[language]
    titles = "; ".join(_title(language, query) for query in nearest)
    return words["cannot"] + (" " + words["nearest"].format(titles=titles) if titles else "")


def _head(language: Language, query: NamedQuery | None, values: Mapping[str, object]) -> str:
    words = _WORDS[language]
    if query is None:
        named = {name: value for name, value in values.items() if value is not None}
        return words["sql"] + (" " + words["with"].format(filters=_filters(language, {}, named)) if named else "")
    parts = [_title(language, query)]
    first, last = period_parameters(query.parameters.values())
    days = {parameter.name for parameter in (first, last) if parameter is not None}
    from_day, to_day = (values.get(parameter.name) if parameter else None for parameter in (first, last))
    is_all = first is not None and last is not None and (from_day, to_day) == (first.minimum, last.maximum)
    if not is_all and (period := _period(language, from_day, to_day)):
        parts.append(period)
    filters = {
        name: values[name]
        for name, parameter in query.parameters.items()
        # The number of rows is said anyway.
        if name not in days
        and name != "limit"
        and values.get(name) not in (None, None if parameter.must_be_named else parameter.default)
    }
    if filters:
        parts.append(words["with"].format(filters=_filters(language, _labels(language, query), filters)))
    return " ".join(parts)


def _title(language: Language, query: NamedQuery) -> str:
    return query.titles.get(language, query.title)


def _labels(language: Language, query: NamedQuery | None) -> Mapping[str, str]:
    return query.labels.get(language, {}) if query is not None else {}


def _filters(language: Language, labels: Mapping[str, str], values: Mapping[str, object]) -> str:
    return ", ".join(f"{_label(labels, name)} = {_plain(language, name, value)}" for name, value in values.items())


def _period(language: Language, first: object, last: object) -> str:
    words = _WORDS[language]
    if isinstance(first, date) and isinstance(last, date):
        if first == last:
            return words["in"].format(period=_day(language, first))
        if (first.month, first.day, last.month, last.day) == (1, 1, 12, 31) and first.year == last.year:
            return words["in"].format(period=first.year)
        next_day = last + timedelta(1) if last < date.max else last
        if first.day == 1 and next_day.day == 1 and (first.year, first.month) == (last.year, last.month):
            of = " de " if language == "pt" else " "
            return words["in"].format(period=f"{_MONTHS[language][first.month - 1]}{of}{first.year}")
        return words["range"].format(first=_day(language, first), last=_day(language, last))
    if isinstance(first, date):
        return words["since"].format(first=_day(language, first))
    return words["until"].format(last=_day(language, last)) if isinstance(last, date) else ""


def _row(
    language: Language,
    labels: Mapping[str, str],
    columns: Sequence[Mapping[str, str]],
    row: Sequence[object],
    asked: str = "",
) -> str:
    """`name value` of the first columns that are not empty, some of them figures; of a single column the value alone.

    The column `asked` for is among them wherever it stands.
    """
    cells = [(column, _cell(language, column, value)) for column, value in zip(columns, row, strict=False)]
    if len(cells) == 1 and not asked:
        return cells[0][1] or _WORDS[language]["empty"]
    filled = [(column, f"{_label(labels, column['name'])} {text}") for column, text in cells if text]
    descriptions = [place for place, (column, _) in enumerate(filled) if not _is_figure(column)]
    later = descriptions[_MOST_DESCRIPTIONS:]
    first = [place for place, (column, _) in enumerate(filled) if column["name"] == asked]
    kept = list(dict.fromkeys(first + [place for place in range(len(filled)) if place not in later] + later))
    return ", ".join(filled[place][1] for place in sorted(kept[:_MOST_COLUMNS]))


def _worded(labels: Mapping[str, str], columns: Sequence[Mapping[str, str]], row: Sequence[object]) -> Sequence[object]:
    """A row whose texts are names that the catalogue declares, as the language has them."""
    return [
        _label(labels, value) if isinstance(value, str) and not _NUMERIC.match(column.get("type", "")) else value
        for column, value in zip(columns, row, strict=False)
    ]


def _is_figure(column: Mapping[str, str]) -> bool:
    return _NUMERIC.match(column.get("type", "")) is not None and not _NAMING.search(column["name"])


def _label(labels: Mapping[str, str], name: str) -> str:
    if declared := labels.get(name):
        return _shortened(declared)
    return _shortened(name.removesuffix("_usd").removesuffix("_pct")).replace("_", " ")


def _cell(language: Language, column: Mapping[str, str], value: object) -> str:
    if value is None:
        return ""
    kind = column.get("type", "")
    if isinstance(value, str) and _NUMERIC.match(kind):  # what JSON's readers would change comes as text
        try:
            return _plain(language, column["name"], Decimal(value))
        except InvalidOperation:
            return _shortened(value)
    if isinstance(value, str) and kind == "DATE" and re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        return _day(language, date.fromisoformat(value))
    return _plain(language, column["name"], value)


def _plain(language: Language, name: str, value: object) -> str:
    if isinstance(value, bool):
        return _WORDS[language]["true" if value else "false"]
    if isinstance(value, int | float | Decimal):
        # Numbers that count nothing are names: store 31782 has no thousands.
        if isinstance(value, int) and _NAMING.search(name):
            return str(value)
        if name.endswith("_usd"):
            return f"US$ {_marks(language, f'{value:,.2f}')}"
        return _number(language, value) + ("%" if name.endswith("_pct") else "")
    return _day(language, value) if isinstance(value, date) else _shortened(str(value))


def _number(language: Language, value: int | float | Decimal) -> str:
    """1,234.56 in English, 1.234,56 in Portuguese; at most two decimals, more for what is below 1."""
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int):
        text = f"{value:,}"
    else:
        text = f"{value:,.2f}".removesuffix(".00")
        if -1 < value < 1 and value != 0:
            text = f"{value:,.4f}".removesuffix("00")
    return _marks(language, text)


def _marks(language: Language, text: str) -> str:
    return text.translate(str.maketrans(",.", ".,")) if language == "pt" else text


def _day(language: Language, day: date) -> str:
    month = _MONTHS[language][day.month - 1]
    number = "1º" if day.day == 1 else str(day.day)
    return f"{number} de {month} de {day.year}" if language == "pt" else f"{day.day} {month} {day.year}"


def _shortened(text: str) -> str:
    clean = shown(text)
    return clean if len(clean) <= _MOST_CHARACTERS else clean[:_MOST_CHARACTERS] + "…"
