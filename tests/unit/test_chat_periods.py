"""Periods as people write them, in both languages, asked at the end of 2017."""

from __future__ import annotations

from datetime import date

import pytest
from bi_query.chat.periods import Period, read_period
from bi_query.chat.units import Clock
from bi_query.chat.words import words_of
from hypothesis import given
from hypothesis import strategies as st

END = date(2017, 12, 31)
CLOCK = Clock(END, END)


def read(question: str, clock: Clock = CLOCK) -> Period | None:
    words = tuple(words_of(question))
    return read_period(words, (True,) * len(words), clock)


def days(question: str, clock: Clock = CLOCK) -> tuple[str, str] | None:
    """First and last day as ISO text, empty for an open end."""
    period = read(question, clock)
    return period and (str(period.first or ""), str(period.last or ""))


MARCH, JUNE = ("2017-03-01", "2017-03-31"), ("2017-06-01", "2017-06-30")
FIRST_HALF_OF_JUNE = ("2017-06-01", "2017-06-15")


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("vendas em março de 2017", MARCH),
        ("sales in March 2017", MARCH),
        ("03/2017", MARCH),
        ("2017-03", MARCH),
        ("março do ano passado", MARCH),
        ("2017", ("2017-01-01", "2017-12-31")),
        ("no ano de 2016", ("2016-01-01", "2016-12-31")),
        ("Q3 2017", ("2017-07-01", "2017-09-30")),
        ("3T17", ("2017-07-01", "2017-09-30")),
        ("terceiro trimestre de 2016", ("2016-07-01", "2016-09-30")),
        ("in the second quarter", ("2017-04-01", "2017-06-30")),
        ("primeiro semestre", ("2017-01-01", "2017-06-30")),
        ("second half of 2017", ("2017-07-01", "2017-12-31")),
        ("between 1 and 15 June 2017", FIRST_HALF_OF_JUNE),
        ("de 01/06/2017 a 15/06/2017", FIRST_HALF_OF_JUNE),
        ("1 a 15 de junho", FIRST_HALF_OF_JUNE),
        ("June 1 to 15", FIRST_HALF_OF_JUNE),
        ("from 2017-06-01 to 2017-06-15", FIRST_HALF_OF_JUNE),
        ("01/06/17 - 15/06/17", FIRST_HALF_OF_JUNE),
        ("1º de maio", ("2017-05-01", "2017-05-01")),
        ("June 15th, 2017", ("2017-06-15", "2017-06-15")),
        ("06/15/2017", ("2017-06-15", "2017-06-15")),
        ("janeiro a março de 2017", ("2017-01-01", "2017-03-31")),
        ("jan-mar 2017", ("2017-01-01", "2017-03-31")),
        ("dezembro a fevereiro de 2017", ("2016-12-01", "2017-02-28")),
        ("2016 a 2017", ("2016-01-01", "2017-12-31")),
        ("desde abril", ("2017-04-01", "")),
        ("a partir de 10/04", ("2017-04-10", "")),
        ("from March onwards", ("2017-03-01", "")),
        ("until June", ("", "2017-06-30")),
        ("antes de junho", ("", "2017-05-31")),
        ("after 15 March", ("2017-03-16", "")),
        ("last month", ("2017-12-01", "2017-12-31")),
        ("último mês", ("2017-12-01", "2017-12-31")),
        ("semana passada", ("2017-12-25", "2017-12-31")),
        ("last 4 weeks", ("2017-12-04", "2017-12-31")),
        ("nas quatro últimas semanas", ("2017-12-04", "2017-12-31")),
        ("últimos 3 meses", ("2017-10-01", "2017-12-31")),
        ("ano passado", ("2017-01-01", "2017-12-31")),
        ("este mês", ("2017-12-01", "2017-12-31")),
        ("hoje", ("2017-12-31", "2017-12-31")),
        ("ontem", ("2017-12-30", "2017-12-30")),
        ("semana 12", ("2017-03-20", "2017-03-26")),
        ("weeks 10 to 12", ("2017-03-06", "2017-03-26")),
        ("12a semana de 2016", ("2016-03-21", "2016-03-27")),
        ("in May", ("2017-05-01", "2017-05-31")),
        ("top products May", ("2017-05-01", "2017-05-31")),
        ("março e abril", ("2017-03-01", "2017-04-30")),
        ("in weeks 10 and 11", ("2017-03-06", "2017-03-19")),
        ("entre as semanas 10 e 20", ("2017-03-06", "2017-05-21")),
        ("dez 2017", ("2017-12-01", "2017-12-31")),
        ("no mês de março", MARCH),
        ("month of March of the year 2017", MARCH),
        ("mês 03/2017", MARCH),
        ("mar/17", MARCH),
        ("março/2017", MARCH),
        ("03/17", MARCH),
        ("17/03", ("2017-03-17", "2017-03-17")),
        ("15/mar", ("2017-03-15", "2017-03-15")),
        ("jan/17 a mar/17", ("2017-01-01", "2017-03-31")),
        ("20 December to 5 January 2017", ("2016-12-20", "2017-01-05")),
    ],
)
def test_a_period_is_read(question: str, expected: tuple[str, str]) -> None:
    assert days(question) == expected


@pytest.mark.parametrize(
    "question",
    ["may I see the stores", "as dez maiores lojas", "set the table", "out of stock", "31/02/2017", "week 60", "top 10",
     "store 367", "2 weeks", "next month", "", "first of all"],
)  # fmt: skip
def test_what_names_no_period_is_not_taken_for_one(question: str) -> None:
    assert days(question) is None


@pytest.mark.parametrize("question", ["Which month in 2017 sold most?", "em que mês de 2017", "vendas por mês em 2017"])
def test_a_month_that_is_asked_for_is_not_part_of_the_year(question: str) -> None:
    period = read(question)
    assert period is not None
    assert [word.text for word in words_of(question)][period.start : period.end] == ["2017"]


@pytest.mark.parametrize(
    "question",
    ["between March 15 and March 1", "de março a fevereiro", "weeks 5 to 3", "de 15 a 3 de junho", "from 2017 to 2016",
     "2017-06-15 - 2017-06-01"],
)  # fmt: skip
def test_a_range_that_ends_before_it_begins_holds_no_day(question: str) -> None:
    period = read(question)
    assert period is not None and period.is_empty


@pytest.mark.parametrize(
    "question", ["vendas de janeiro e junho", "March and May", "em março e em maio", "weeks 10 and 12", "Q1 and Q4"]
)
def test_two_periods_that_stand_apart_are_not_all_between_them(question: str) -> None:
    period = read(question)
    assert period is not None and period.is_empty


@pytest.mark.parametrize("question", ["after 9999-12-31", "antes de 0001-01-01"])
def test_what_lies_beyond_the_calendar_is_no_open_period(question: str) -> None:
    period = read(question)
    assert period is None or (period.first is not None and period.last is not None)


def test_without_a_year_the_latest_that_has_begun_is_meant() -> None:
    clock = Clock(date(2026, 3, 9), date(2026, 3, 10))
    assert days("em março", clock) == ("2026-03-01", "2026-03-31")
    assert days("in April", clock) == ("2025-04-01", "2025-04-30")


def test_today_and_yesterday_are_the_calendar_s_even_where_the_data_end_before() -> None:
    clock = Clock(END, END, asked_on=date(2026, 3, 10))
    assert days("vendas de hoje", clock) == ("2026-03-10", "2026-03-10")
    assert days("yesterday's sales", clock) == ("2026-03-09", "2026-03-09")
    assert days("this month", clock) == ("2017-12-01", "2017-12-31")
    assert days("yesterday", Clock(date.min, date.min)) == ("0001-01-01", "0001-01-01")


def test_the_last_month_is_the_last_that_has_ended() -> None:
    clock = Clock(date(2026, 3, 9), date(2026, 3, 10))
    assert days("last month", clock) == ("2026-02-01", "2026-02-28")
    assert days("last week", clock) == ("2026-03-02", "2026-03-08")
    assert days("last 7 days", clock) == ("2026-03-03", "2026-03-09")
    assert days("this month", clock) == ("2026-03-01", "2026-03-31")


def test_weeks_are_counted_as_the_data_count_them_where_they_do() -> None:
    own = Clock(END, END, first_week=date(2016, 12, 26))
    assert days("semana 12", own) == ("2017-03-13", "2017-03-19")
    assert days("semana 12 de 2016", own) == ("2016-03-21", "2016-03-27")


def test_words_that_serve_for_something_else_are_left_alone() -> None:
    words = tuple(words_of("store 2017 in March"))
    period = read_period(words, (False, False, True, True), CLOCK)
    assert period is not None
    assert (period.start, period.end) == (3, 4)


WORDS = st.sampled_from(
    [word.text for word in words_of(
        "de a e to and from between entre desde until last past último mês month week semana q1 2017 12 31 0 99 may março "
        "dez 9999 01/06/2017 2017-02-30 primeiro half ano year this 1st dias 400 ontem - before antes on"
    )]
)  # fmt: skip


@given(st.lists(WORDS, max_size=12), st.dates())
def test_any_words_at_any_time_give_a_period_that_does_not_end_before_it_begins(words: list[str], day: date) -> None:
    period = read(" ".join(words), Clock(day, day))
    if period is not None:
        assert period.start < period.end
        assert period.first is None or period.last is None or period.first <= period.last
