"""The period a question names, as people write it in Portuguese and English: `março de 2017`, `Q3`, `1 a 15 de junho`.

Why not a date library: those read one moment (`março de 2017` is today's day in March), know no quarters, halves or
ranges, and take `set` or `may` for months wherever they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import lru_cache

from .units import Clock, Kind, Unit, around, full_year, whole
from .words import Word, number_of


@dataclass(frozen=True)
class Period:
    """Days from `first` to `last`, both included; None is open. It stood at words `start` up to `end` (excluded).

    `is_empty`: no range of days can be meant, since it ends before it begins, or two periods stand apart (`March and May`).
    """

    first: date | None
    last: date | None
    start: int
    end: int
    is_empty: bool = False

    def holds(self, other: Period) -> bool:
        """Whether every day of `other` is one of this."""
        return (self.first or date.min) <= (other.first or date.min) and (other.last or date.max) <= (
            self.last or date.max
        )


def _table(**names: str) -> dict[str, int]:
    return {name: int(key[1:]) for key, group in names.items() for name in group.split()}


_MONTHS = _table(
    m1="january janeiro jan",
    m2="february fevereiro feb fev",
    m3="march marco mar",
    m4="april abril apr abr",
    m5="may maio mai",
    m6="june junho jun",
    m7="july julho jul",
    m8="august agosto aug ago",
    m9="september setembro sep sept set",
    m10="october outubro oct out",
    m11="november novembro nov",
    m12="december dezembro dec dez",
)
_ALSO_OTHER_WORDS = {"may", "mar", "ago", "set", "out", "dez"}
_ORDINALS = _table(
    n1="1o 1a 1st first primeiro primeira",
    n2="2o 2a 2nd second segundo segunda",
    n3="3o 3a 3rd third terceiro terceira",
    n4="4o 4a 4th fourth quarto quarta",
)
_KIND_NAMES: dict[Kind, str] = {
    "day": "day days dia dias",
    "week": "week weeks semana semanas",
    "month": "month months mes meses",
    "quarter": "quarter quarters trimestre trimestres",
    "half": "half halves semester semesters semestre semestres",
    "year": "year years ano anos",
}
_KINDS = {name: kind for kind, names in _KIND_NAMES.items() for name in names.split()}
_SHORT = re.compile(r"([qths])([1-4])(?:(\d{4}|\d{2}))?|([1-4])([qts])(\d{4}|\d{2})?")
_TWO_NUMBERS = re.compile(r"(\d{1,2})/(\d{1,2})")
_LAST = {"last", "past", "previous", "latest", "ultimo", "ultima", "ultimos", "ultimas", "passado", "passada", "passados",
         "passadas", "anterior", "anteriores"}  # fmt: skip
_AFTER_ITS_NOUN = {"passado", "passada", "passados", "passadas", "anterior", "anteriores"}
_THIS = {"this", "current", "este", "esta", "neste", "nesta", "deste", "desta", "atual", "corrente"}
_OF = {"de", "do", "da", "of", "the", "in", "no", "na", "em", "o", "a"}
_MONTH_NOUNS, _YEAR_NOUNS = {"mes", "month"}, {"ano", "year"}
_SINCE = {"since", "desde", "starting", "partir"}
_AND, _BETWEEN = {"e", "and"}, {"between", "entre"}
_RANGE_LEADS = {*_BETWEEN, "from", "de", "da", "do", *_SINCE}
_TO = {"a", "ate", "to", "until", "till", "through", "thru", "e", "and", "ao", "-", "–", "—"}
_UNTIL = {"until", "till", "ate", "through"}
_BEFORE = {"before", "antes"}
_ONWARDS = {"on", "onward", "onwards", "diante"}
_AFTER = {"after", "apos", "depois"}
_MONTH_FOLLOWS = {
    "em",
    "in",
    "de",
    "of",
    "since",
    "desde",
    "until",
    "till",
    "ate",
    "during",
    "for",
    "from",
    "to",
    "e",
    "and",
    "x",
    "vs",
    "versus",
    "than",
    "contra",
    "against",
}

WORDS = frozenset(
    {*_MONTHS, *_ORDINALS, *_KINDS, *_LAST, *_THIS, *_SINCE, *_UNTIL, *_BEFORE, *_AFTER, *_ONWARDS, *_RANGE_LEADS, *_TO}
    | {"today", "hoje", "yesterday", "ontem"}
)


@lru_cache(maxsize=64)  # every named query reads the same question, most of them by the same clock
def read_period(words: tuple[Word, ...], free: tuple[bool, ...], clock: Clock) -> Period | None:
    """The first period that the words name, among those still `free`; None when they name none."""
    reader = _Reader([word.text if ok else "" for word, ok in zip(words, free, strict=True)], clock)
    for start in range(len(words)):
        if reader.texts[start] and (period := reader.period(start)) is not None:
            return period
    return None


class _Reader:
    """Reads from a given word on; what does not fit gives None."""

    def __init__(self, texts: list[str], clock: Clock) -> None:
        self.texts = texts
        self._clock = clock

    def _at(self, index: int) -> str:
        return self.texts[index] if 0 <= index < len(self.texts) else ""

    def _skip(self, index: int, words: set[str]) -> int:
        while self._at(index) in words:
            index += 1
        return index

    def period(self, start: int) -> Period | None:
        """A range, an open period or one unit that begins at `start`."""
        text = self._at(start)
        if text in _RANGE_LEADS:
            found = self._range(self._skip(start + 1, _OF - {"a"}), start)
            if found is not None:
                return found
        if text == "up" and self._at(start + 1) == "to":
            return self._open(start + 1, "until")
        if text in _SINCE | _UNTIL | _BEFORE | _AFTER:
            return self._open(start, text)
        return self._range(start, start) or self._single(start)

    def _single(self, start: int) -> Period | None:
        read = self._unit(start)
        days = self._clock.days(read[0]) if read else None
        if read is None or days is None:
            return None
        after = self._skip(read[1], {"em"})
        if self._at(after) in _ONWARDS:
            return Period(days[0], None, start, after + 1)
        return Period(*days, start, read[1])

    def _open(self, start: int, text: str) -> Period | None:
        read = self._unit(self._skip(start + 1, _OF))
        days = self._clock.days(read[0]) if read else None
        if read is None or days is None:
            return None
        first, last = days
        if text in _SINCE:
            return Period(first, None, start, read[1])
        if text in _UNTIL:
            return Period(None, last, start, read[1])
        if (first == date.min) if text in _BEFORE else (last == date.max):
            return None
        if text in _BEFORE:
            return Period(None, first - timedelta(1), start, read[1])
        return Period(last + timedelta(1), None, start, read[1])

    def _range(self, index: int, start: int) -> Period | None:
        bare = int(self._at(index)) if re.fullmatch(r"\d{1,2}", self._at(index)) else None
        left = self._unit(index)
        if left is None and bare is not None:
            left = Unit("day", bare), index + 1
        if left is None:
            return None
        middle = self._skip(left[1], _TO)
        adjacent = middle == left[1]
        right = self._unit(self._skip(middle, _OF))
        if right is None or (adjacent and not (left[0].kind == right[0].kind == "month" and left[0].year is None)):
            right = None if adjacent else self._second_number(left[0], middle)
        if right is None:
            return None
        first_unit, last_unit = left[0], right[0]
        if first_unit.kind == "day" and first_unit.month is None and not first_unit.days:
            if last_unit.kind != "day" or last_unit.month is None:
                return None
            first_unit = replace(first_unit, month=last_unit.month, year=last_unit.year)
        if first_unit.year is None and first_unit.days is None:
            first_unit = replace(first_unit, year=last_unit.year)
        first, last = self._clock.days(first_unit), self._clock.days(last_unit)
        if first and last and first[0] > last[1] and _begins_the_year_before(left[0], last_unit):
            first = self._clock.days(replace(first_unit, year=last[0].year - 1))
        if not first or not last:
            return None
        are_two = not adjacent and _AND.issuperset(self.texts[left[1] : middle])
        are_two &= _BETWEEN.isdisjoint(self.texts[max(0, start - 2) : start + 1])
        if first[0] > last[1] or (are_two and (last[0] - first[1]).days > 1):
            return Period(None, None, start, right[1], is_empty=True)
        return Period(first[0], last[1], start, right[1])

    def _second_number(self, left: Unit, index: int) -> tuple[Unit, int] | None:
        """The second number of `weeks 10 to 12`, `March 5 to 10`."""
        if left.kind not in ("day", "week") or left.days or not re.fullmatch(r"\d{1,2}", self._at(index)):
            return None
        year, end = self._year(index + 1)
        return replace(left, number=int(self._at(index)), year=year or left.year), end

    def _unit(self, start: int) -> tuple[Unit, int] | None:
        """One day, week, month, quarter, half or year, and the word after it."""
        lead, text = start, self._at(start)
        if text in _MONTH_NOUNS | _YEAR_NOUNS:
            # `mês de março`, `ano de 2017`; but in `which month in 2017` the month is what is asked for.
            after = self._skip(start + 1, _OF)
            lead = after if self._is_month(after) == (text in _MONTH_NOUNS) else start
        elif text in _LAST and self._at(start + 1) in _MONTHS:
            lead = start + 1
        return (
            self._relative(start)
            or self._written(lead)
            or self._day(lead)
            or self._month(lead)
            or self._part(start)
            or self._week(start)
            or self._plain_year(lead)
        )

    def _is_month(self, start: int) -> bool:
        written = self._written(start)
        return self._at(start) in _MONTHS or (written is not None and written[0].kind == "month")

    def _written(self, start: int) -> tuple[Unit, int] | None:
        """`2017-06-01`, `01/06/2017`, `06/2017`, `1/6`, `jan/17`: the day first, as Portuguese has it.

        `06/15/2017` has the month first, since there is no other way to read it, and `03/17` is March 2017.
        """
        parts = re.split(r"[./-]", self._at(start))
        if len(parts) == 2 and parts[0] in _MONTHS and parts[1].isdigit():
            return Unit("month", _MONTHS[parts[0]], year=full_year(int(parts[1]))), start + 1
        if len(parts) < 2 or not all(part.isascii() and part.isdigit() for part in parts):
            return None
        numbers = [int(part) for part in parts]
        year: int | None
        if len(parts[0]) == 4:
            year, month, day = numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else 0
        elif len(numbers) == 2 and (len(parts[1]) == 4 or (numbers[0] <= 12 < numbers[1] and len(parts[1]) == 2)):
            year, month, day = full_year(numbers[1]), numbers[0], 0
        else:
            day, month = (numbers[0], numbers[1]) if numbers[1] <= 12 else (numbers[1], numbers[0])
            year = full_year(numbers[2]) if len(numbers) == 3 else None
        unit = Unit("day", day, month, year) if day or len(numbers) == 3 else Unit("month", month, year=year)
        return (unit, start + 1) if self._clock.days(unit) else None

    def _day(self, start: int) -> tuple[Unit, int] | None:
        """`15 de junho de 2017`, `June 15th, 2017`."""
        index = start + 1 if self._at(start) in {"dia", "day"} else start
        day, month_at = _day_number(self._at(index)), self._skip(index + 1, {"de", "of"})
        if day and (month := _MONTHS.get(self._at(month_at))):
            year, end = self._year(month_at + 1)
            return Unit("day", day, month, year), end
        month = _MONTHS.get(self._at(index))
        day_at = self._skip(index + 1, {"the"})
        day = _day_number(self._at(day_at))
        if month and day and self._at(day_at + 1) not in _MONTHS:
            year, end = self._year(day_at + 1)
            return Unit("day", day, month, year), end
        return None

    def _month(self, start: int) -> tuple[Unit, int] | None:
        text = self._at(start)
        if (month := _MONTHS.get(text)) is None:
            return None
        year, end = self._year(start + 1)
        is_last = text == "may" and 0 < start == len(self.texts) - 1  # `top products May`
        surely = year is not None or is_last or text not in _ALSO_OTHER_WORDS
        if not surely and (text == "dez" or self._at(start - 1) not in _MONTH_FOLLOWS):
            return None
        return Unit("month", month, year=year), end

    def _part(self, start: int) -> tuple[Unit, int] | None:
        """A quarter or a half: `Q3 2017`, `3T17`, `terceiro trimestre`, `first half of 2017`, `trimestre 3`."""
        if short := _SHORT.fullmatch(self._at(start)):
            letter, number = short[1] or short[5], int(short[2] or short[4])
            kind: Kind = "half" if letter in "hs" else "quarter"
            digits = short[3] or short[6]
            year, end = (full_year(int(digits)), start + 1) if digits else self._year(start + 1)
            return (Unit(kind, number, year=year), end) if self._fits(kind, number) else None
        kind_at, number_at = start + 1, start
        if self._at(start) in _KINDS:
            kind_at, number_at = start, start + 1
        named = _KINDS.get(self._at(kind_at), "day")
        number = _ORDINALS.get(self._at(number_at), 0)
        if kind_at < number_at and not number and self._at(number_at) in {"1", "2", "3", "4"}:
            number = int(self._at(number_at))
        if not number or not self._fits(named, number):
            return None
        year, end = self._year(start + 2)
        return Unit(named, number, year=year), end

    @staticmethod
    def _fits(kind: Kind, number: int) -> bool:
        return (kind == "quarter" and number <= 4) or (kind == "half" and number <= 2)

    def _week(self, start: int) -> tuple[Unit, int] | None:
        """`week 12`, `semana 12 de 2017`, `12a semana`."""
        first, second = self._at(start), self._at(start + 1)
        number = first if _KINDS.get(second) == "week" else second
        if (_KINDS.get(first) == "week" and re.fullmatch(r"\d{1,2}", second)) or (
            _KINDS.get(second) == "week" and re.fullmatch(r"\d{1,2}(a|st|nd|rd|th)", first)
        ):
            year, end = self._year(start + 2)
            return Unit("week", int(re.sub(r"\D", "", number)), year=year), end
        return None

    def _plain_year(self, start: int) -> tuple[Unit, int] | None:
        text = self._at(start)
        return (Unit("year", year=int(text)), start + 1) if re.fullmatch(r"(19|20)\d\d", text) else None

    def _year(self, index: int) -> tuple[int | None, int]:
        """A year that may follow, and the word after it."""
        after = self._skip(index, _OF | _YEAR_NOUNS)
        if re.fullmatch(r"(19|20)\d\d", self._at(after)):
            return int(self._at(after)), after + 1
        relative = self._relative(self._skip(index, _OF))
        if relative and relative[0].kind == "year" and relative[0].days:  # março do ano passado
            return relative[0].days[0].year, relative[1]
        return None, index

    def _relative(self, start: int) -> tuple[Unit, int] | None:
        """`last 4 weeks`, `últimos três meses`, `mês passado`, `this year`, `ontem`."""
        text, index = self._at(start), start
        today, last_day = self._clock.today, self._clock.last_day
        if text in {"today", "hoje", "yesterday", "ontem"}:
            day = self._clock.asked_on or today
            if text in {"yesterday", "ontem"} and day > date.min:
                day -= timedelta(1)
            return Unit("day", days=(day, day)), start + 1
        if text == "ytd":
            return Unit("year", days=(date(today.year, 1, 1), last_day)), start + 1
        count = 1
        if text in _LAST - _AFTER_ITS_NOUN or text in _THIS:
            if amount := _amount(self._at(index + 1)):
                count, index = amount, index + 1
            kind, end, is_last = _KINDS.get(self._at(index + 1)), index + 2, text in _LAST
        elif (amount := _amount(text)) and self._at(index + 1) in _LAST:  # 4 últimas semanas
            count, kind, end, is_last = amount, _KINDS.get(self._at(index + 2)), index + 3, True
        else:
            if amount := _amount(text):
                count, index = amount, index + 1
            kind, end = _KINDS.get(self._at(index)), index + 2
            is_last = self._at(index + 1) in _AFTER_ITS_NOUN
            if not is_last and self._at(index + 1) not in {"atual", "corrente"}:
                return None
        if kind is None or count > 400:
            return None
        days = whole(kind, last_day, count) if is_last else around(kind, today)
        return Unit(kind, days=days), end


def is_ambiguous(words: Iterable[Word]) -> bool:
    """Whether the dates among a period's words can be read another way: `5/6`, `03/17`; not `17/03`, `1/3 a 15/3`."""
    pairs = [(int(short[1]), int(short[2])) for word in words if (short := _TWO_NUMBERS.fullmatch(word.text))]
    return bool(pairs) and all(first <= 12 and first != second for first, second in pairs)


def _begins_the_year_before(first: Unit, last: Unit) -> bool:
    """`dezembro a fevereiro de 2017` does; `March 15 to March 1`, or a range without any year, is a slip."""
    if first.year is not None or first.days is not None or last.year is None or first.kind == "week":
        return False
    return first.kind != "day" or (first.month is not None and first.month != last.month)


def _day_number(text: str) -> int:
    digits = re.fullmatch(r"(\d{1,2})(st|nd|rd|th|o)?", text)
    if text in {"primeiro", "first"}:
        return 1
    return int(digits[1]) if digits and 1 <= int(digits[1]) <= 31 else 0


def _amount(text: str) -> int:
    number = number_of(text)
    return int(number) if number is not None and 1 <= number <= 1000 else 0
