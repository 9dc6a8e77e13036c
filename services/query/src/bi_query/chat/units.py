"""Days, weeks, months, quarters, halves and years as first and last day."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

Kind = Literal["day", "week", "month", "quarter", "half", "year"]
_MONTHS_OF: dict[Kind, int] = {"month": 1, "quarter": 3, "half": 6, "year": 12}
_YEARS_BACK = 5


@dataclass(frozen=True)
class Unit:
    """One of a kind: `number` is the day's, week's, month's, quarter's or half's; without a year the latest is meant."""

    kind: Kind
    number: int = 0
    month: int | None = None  # of a day
    year: int | None = None
    days: tuple[date, date] | None = None  # what is already resolved: `last month`


@dataclass(frozen=True)
class Clock:
    """When a question is asked.

    `last_day` is the last day that the data cover, or that has ended; `today` the day that `this month` is about;
    `first_week` the Monday of week 1 where the data count weeks themselves (else weeks are ISO's); `asked_on` the day by the
    calendar, for `today` and `yesterday` themselves (else `today`).
    """

    last_day: date
    today: date
    first_week: date | None = None
    asked_on: date | None = None

    def days(self, unit: Unit) -> tuple[date, date] | None:
        """First and last day; None for what is in no calendar. Without a year: the latest that has begun."""
        if unit.days:
            return unit.days
        if unit.year is not None:
            return self._in_year(unit, unit.year)
        for year in range(self.last_day.year, self.last_day.year - _YEARS_BACK, -1):
            if (days := self._in_year(unit, year)) and days[0] <= self.last_day:
                return days
        return None

    def _in_year(self, unit: Unit, year: int) -> tuple[date, date] | None:
        try:
            if unit.kind == "day":
                day = date(year, unit.month or 0, unit.number)
                return day, day
            if unit.kind == "week":
                monday = self._monday(unit.number, year)
                return monday, monday + timedelta(6)
            months = _MONTHS_OF[unit.kind]
            first = date(year, 1 if unit.kind == "year" else (unit.number - 1) * months + 1, 1)
            return first, _months_later(first, months) - timedelta(1)
        except (ValueError, OverflowError):
            return None

    def _monday(self, number: int, year: int) -> date:
        own = self.first_week
        if own is not None and 1 <= number <= 53 and year == (own + timedelta(6)).year:
            return own + timedelta(7 * (number - 1))
        return date.fromisocalendar(year, number, 1)


def around(kind: Kind, day: date) -> tuple[date, date]:
    """The whole day, week, month … that holds a day."""
    if kind == "day":
        return day, day
    if kind == "week":
        monday = day - timedelta(day.weekday())
        return monday, monday + timedelta(6)
    months = _MONTHS_OF[kind]
    first = date(day.year, (day.month - 1) // months * months + 1, 1)
    return first, _months_later(first, months) - timedelta(1)


def whole(kind: Kind, last_day: date, count: int) -> tuple[date, date] | None:
    """The last `count` whole weeks, months … that had ended by a day; None where the calendar does not reach back."""
    try:
        first, last = around(kind, last_day)
        if last > last_day:
            last = first - timedelta(1)
        if kind in ("day", "week"):
            return last - timedelta(count * (7 if kind == "week" else 1) - 1), last
        return _months_later(around(kind, last)[0], -_MONTHS_OF[kind] * (count - 1)), last
    except (ValueError, OverflowError):
        return None


def full_year(digits: int) -> int:
    """A year of two digits is this century's."""
    return digits if digits > 99 else 2000 + digits


def _months_later(first: date, months: int) -> date:
    total = first.year * 12 + first.month - 1 + months
    return date(total // 12, total % 12 + 1, 1)
