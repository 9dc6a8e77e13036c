"""Questions find their named query with its parameters, and what no query answers is refused."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path
from types import FrameType

import pytest
from bi_query.catalogue import Catalogue, load_catalogue
from bi_query.catalogue_dir import demo_catalogue_dir
from bi_query.chat.matcher import Match, Matcher
from bi_query.parameters import bind
from bi_query.settings import Settings
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.small import FRESHNESS

from .chat_questions import ANSWERED, LATER_ANSWERED, LATER_REFUSED, REFUSED

MIN = Settings.model_fields["chat_min_confidence"].default
SURE = Settings.model_fields["chat_sure_confidence"].default
MATCHER = Matcher(load_catalogue(demo_catalogue_dir()))
MOST_CALLS = 200_000  # of functions; a usual question takes some 10,000


def best(question: str, matcher: Matcher = MATCHER) -> Match:
    """The best match; there must be one."""
    return matcher.matches(question)[0]


def confidence(question: str, matcher: Matcher = MATCHER) -> float:
    """Of the best match, 0 without one."""
    return max((match.confidence for match in matcher.matches(question)), default=0.0)


def catalogue(folder: Path, **files: str) -> Catalogue:
    """A catalogue of queries by name (`vocabulary` is the YAML of that name)."""
    (folder / "queries").mkdir()
    (folder / "freshness.yaml").write_text(FRESHNESS)
    if text := files.pop("vocabulary", ""):
        (folder / "vocabulary.yaml").write_text(text)
    for name, text in files.items():
        (folder / "queries" / f"{name}.sql").write_text(text)
    return load_catalogue(folder)


PERIOD = (
    "parameters:\n  day_from: {type: date, default: 2020-01-01, minimum: 2020-01-01, maximum: 2030-12-31}\n"
    "  day_to: {type: date, default: 2030-12-31, minimum: 2020-01-01, maximum: 2030-12-31}"
)
ORDERS = f"/*---\ntitle: Orders per warehouse\nfreshness: steady\n{PERIOD}\n---*/\nselect $day_from as a, $day_to as b"
RETURNS = """/*---
title: Returned parcels
freshness: steady
parameters:
  reason: {type: string}
---*/
select $reason as reason
"""


@pytest.mark.parametrize(("question", "query", "values"), ANSWERED + LATER_ANSWERED)
def test_a_question_finds_its_query_and_its_parameters(question: str, query: str, values: dict[str, str]) -> None:
    match = best(question)
    assert (match.query.name, dict(match.values)) == (query, values)
    assert match.confidence >= MIN


@pytest.mark.parametrize("question", REFUSED + LATER_REFUSED)
def test_what_no_query_answers_stays_below_the_threshold(question: str) -> None:
    assert confidence(question) < MIN


def test_three_of_four_answers_are_sure_enough_to_spare_a_model() -> None:
    sure = [question for question, *_ in ANSWERED + LATER_ANSWERED if confidence(question) >= SURE]
    assert len(sure) > 0.75 * len(ANSWERED + LATER_ANSWERED)


def test_every_match_binds_and_is_ordered() -> None:
    for question in [question for question, *_ in ANSWERED + LATER_ANSWERED] + REFUSED + LATER_REFUSED:
        matches = MATCHER.matches(question)
        for match in matches:
            bind(match.query.parameters, match.values)
            assert 0 <= match.confidence <= 1
        assert len(matches) <= 3
        assert matches == sorted(matches, key=lambda match: -match.confidence)


@pytest.mark.parametrize(
    ("written", "also"),
    [
        ("Qual a previsão de vendas?", "QUAL A PREVISAO DE VENDAS"),
        ("produtos mais vendidos em março", "Produtos MAIS vendidos em marco"),
        ("ticket médio da loja 367", "tiquete medio da loja nº 367"),
        ("top 10 stores", "Top ten stores!"),
    ],
)
def test_accents_case_and_signs_make_no_difference(written: str, also: str) -> None:
    assert best(written).query == best(also).query
    assert best(written).values == best(also).values


@pytest.mark.parametrize(
    ("misspelt", "query"),
    [
        ("vendas por semnaa", "sales_by_week"),
        ("wich suplliers sell the most", "suppliers"),
        ("desempenho dos departamentso", "department_performance"),
        ("coupom redemtion by campaing", "coupon_redemption"),
    ],
)
def test_small_typing_errors_are_forgiven_and_make_less_sure(misspelt: str, query: str) -> None:
    match = best(misspelt)
    assert match.query.name == query
    assert MIN <= match.confidence < 0.97


def test_a_misspelt_value_makes_less_sure() -> None:
    well, badly = best("vendas por semana da mercearia"), best("vendas por semana da mercearua")
    assert well.values == badly.values
    assert MIN <= badly.confidence < well.confidence


@pytest.mark.parametrize(
    ("plain", "with_more"),
    [
        ("top products in May", "top products in May by colour"),
        ("vendas por loja", "vendas por loja e vendedor"),
        ("sales by week of grocery", "sales by week of grocery and produce"),
        ("ranking das lojas", "ranking das lojas menos movimentadas"),
        ("sales forecast for the deli", "sales forecast for the deli without cheese"),
        ("how many new customers", "how many new customers by acquisition channel"),
    ],
)
def test_words_that_a_match_does_not_explain_make_it_less_sure(plain: str, with_more: str) -> None:
    assert confidence(plain) >= SURE
    assert confidence(with_more) < confidence(plain) - 0.1


def test_a_second_value_for_one_parameter_is_not_dropped_silently() -> None:
    assert confidence("sales of the deli by week") >= SURE
    assert confidence("sales of the deli and the bakery by week") < SURE
    assert confidence("compare store 367 with store 406") < MIN


def test_a_period_is_cut_to_the_parameter_s_bounds_and_one_outside_them_is_no_match() -> None:
    assert dict(best("top products in 2016 and 2017").values)["from_date"] == "2017-01-01"
    outside = best("top products in 2015")
    assert outside.confidence < MIN
    assert "from_date" not in dict(outside.values)
    assert confidence("new and returning customers per week") >= SURE
    assert confidence("new and returning customers per week in 2015") < MIN


SEEN_SINCE = [
    ("Which month in 2017 sold most?", "top_products"),
    ("melhor mês de 2017", "top_products"),
    ("em que mês de 2017 vendemos mais", "top_products"),
    ("vendas por mês em 2017", "dashboard_metrics"),
    ("sales by month in 2017", "dashboard_metrics"),
    ("how many products did we sell in March", "product_trend"),
    ("which products are growing?", "product_trend"),
    ("products with no sales", "product_trend"),
    ("products on sale", "product_trend"),
    ("vendas em reais", "forecast_backtest"),
    ("vendas por dia em março", "traffic_by_hour"),
    ("sales per day in March", "traffic_by_hour"),
    ("which store has the most customers", "traffic_by_hour"),
    ("lojas com mais clientes", "traffic_by_hour"),
    ("clientes por loja", "traffic_by_hour"),
    ("what sells most in the morning", "top_products"),
    ("o que mais vende de manhã", "top_products"),
    ("which customer bought the most", "top_products"),
    ("qual cliente comprou mais", "top_products"),
    ("quantos fornecedores temos?", "suppliers"),
    ("how many suppliers do we have?", "suppliers"),
    ("quantas lojas temos?", "store_ranking"),
    ("sales in June compared to May", "dashboard_metrics"),
    ("Did we sell more in December than in November?", "dashboard_metrics"),
    ("vendas de junho x maio", "top_products"),
    ("sales June vs May", "dashboard_metrics"),
    ("vendas de janeiro e junho", "dashboard_metrics"),
    ("sales in June, July and August", "dashboard_metrics"),
    ("what will be our best selling product?", "top_products"),
    ("what will be our best selling product?", "forecast_accuracy"),
    ("quais produtos vão vender mais?", "top_products"),
    ("produtos que mais vão crescer", "top_products"),
    ("forecast for next year", "sales_forecast"),
    ("quem compra cerveja?", "basket_affinity"),
    ("como foram as vendas ontem?", "dashboard_metrics"),
]


@pytest.mark.parametrize(("question", "wrong"), SEEN_SINCE)
def test_what_a_review_saw_answered_with_something_else_is_not(question: str, wrong: str) -> None:
    matches = MATCHER.matches(question, most=17)
    assert [match for match in matches if match.query.name == wrong and match.confidence >= MIN] == []
    assert confidence(question) < SURE


@pytest.mark.parametrize(
    ("question", "query", "values"),
    [
        ("how many households shop at store 367", "dashboard_metrics", {"store_id": "367"}),
        ("when do people shop most", "traffic_by_hour", {}),
        ("previsto versus real", "forecast_backtest", {}),
        ("quão boa é a previsão?", "forecast_accuracy", {}),
        ("o que os clientes mais compram", "top_products", {}),
        ("what do customers buy the most", "top_products", {}),
        ("vendas de 01/03 a 15/03", "dashboard_metrics", {"from_date": "2017-03-01", "to_date": "2017-03-15"}),
        (
            "Bom dia! Quanto vendemos em março?",
            "dashboard_metrics",
            {"from_date": "2017-03-01", "to_date": "2017-03-31"},
        ),
        ("good afternoon, total sales", "dashboard_metrics", {}),
        ("vendas no mês de março", "dashboard_metrics", {"from_date": "2017-03-01", "to_date": "2017-03-31"}),
    ],
)
def test_what_stood_beside_it_is_still_answered(question: str, query: str, values: dict[str, str]) -> None:
    match = best(question)
    assert (match.query.name, dict(match.values)) == (query, values)
    assert match.confidence >= SURE


def test_a_query_of_one_product_is_no_answer_unless_a_product_is_named() -> None:
    trends = [match for match in MATCHER.matches("product trend", most=17) if match.query.name == "product_trend"]
    assert all(match.confidence < 0.1 for match in trends)
    assert best("trend of product 1082185").values == (("product_id", "1082185"),)


@pytest.mark.parametrize(
    "question",
    ["sales between March 15 and March 1", "vendas de março a fevereiro", "sales in weeks 5 to 3"],
)
def test_a_reversed_range_is_not_silently_half_of_it(question: str) -> None:
    assert confidence(question) < MIN


def test_a_month_with_two_digits_of_its_year_is_that_month() -> None:
    january = {"from_date": "2017-01-01", "to_date": "2017-01-31"}
    assert dict(best("vendas jan/17").values) == january
    assert confidence("vendas jan/17") >= SURE


@pytest.mark.parametrize(
    ("question", "first", "last"),
    [("vendas 03/17", "2017-03-01", "2017-03-31"), ("vendas em 05/06", "2017-06-05", "2017-06-05")],
)
def test_numbers_that_may_be_two_dates_are_answered_but_not_surely(question: str, first: str, last: str) -> None:
    match = best(question)
    assert dict(match.values) == {"from_date": first, "to_date": last}
    assert MIN <= match.confidence < SURE


@pytest.mark.parametrize(
    "question",
    [
        "Vendas no sábado",
        "Quanto vendemos aos sábados?",
        "vendas nos sabados de 2017",
        "ticket médio aos sábados",
        "sales on Monday",
        "vendas na segunda-feira",
        "busiest hour on weekends",
        "busiest hour of store 367 on Saturdays",
        "horário de pico no domingo",
        "quanto vendemos no natal?",
        "busiest hours in winter",
        "promotion effect at Christmas",
        "novos clientes na páscoa",
    ],
)
def test_days_by_their_names_are_refused_where_no_query_takes_them(question: str) -> None:
    assert confidence(question) < MIN


def test_a_catalogue_may_take_weekdays_as_values(tmp_path: Path) -> None:
    words = "values:\n  reason: {late: [sábado, saturday]}"
    matcher = Matcher(catalogue(tmp_path, returns=RETURNS, vocabulary=words))
    assert best("returned parcels on Saturdays", matcher).values == (("reason", "late"),)
    assert confidence("returned parcels on Saturday", matcher) >= SURE


@pytest.mark.parametrize(
    "question", ["vendas de salame", "vendas de salgados", "sales of bakers", "vendas de florestas", "vendas da padria"]
)
def test_a_short_word_that_is_nearly_a_value_is_too_often_another_word(question: str) -> None:
    assert confidence(question) < MIN


@pytest.mark.parametrize(
    ("question", "query", "department"),
    [
        ("grocrey sales by week", "sales_by_week", "GROCERY"),  # the same letters in another order
        ("vendas por semana da mercearua", "sales_by_week", "GROCERY"),
        ("top products of the delicatesen", "top_products", "DELI"),
    ],
)
def test_typing_errors_of_longer_values_still_find_them(question: str, query: str, department: str) -> None:
    match = best(question)
    assert (match.query.name, dict(match.values)) == (query, {"department": department})
    assert MIN <= match.confidence < SURE


@pytest.mark.parametrize(
    "question",
    [
        "vendas em 2018",
        "Weekly sales for 2018",
        "vendas de junho de 2019",
        "top products in 2019",
        "descontos em 2018",
        "novos clientes em 2019",
        "sales since January 2018",
        "Qual será o faturamento em 2018?",
        "quanto vamos faturar em 2018?",
        "vendas de hoje",
        "vendas de ontem",
        "yesterday's top products",
        "quantos cupons foram resgatados ontem?",
    ],
)
def test_a_period_after_the_last_day_of_data_is_refused_not_answered_as_zero(question: str) -> None:
    match = best(question)
    assert match.confidence < MIN
    assert "from_date" not in dict(match.values)


def test_a_period_that_reaches_beyond_the_last_day_of_data_ends_with_it() -> None:
    assert dict(best("vendas de outubro até hoje").values) == {"from_date": "2017-10-01", "to_date": "2017-12-31"}
    assert dict(best("coupon campaigns in January 2018").values)["to_date"] == "2018-01-31"  # they run on


@pytest.mark.parametrize(
    ("question", "values"),
    [
        ("Quanto será o faturamento?", {}),
        ("como serão as vendas de carne?", {"department": "MEAT"}),
        ("Quanto vai ser o faturamento nas próximas 4 semanas?", {"weeks": "4"}),
        ("what will sales be in the next 4 weeks?", {"weeks": "4"}),
        ("previsão para 20 semanas", {"weeks": "20"}),
    ],
)
def test_what_is_asked_of_the_future_is_the_forecast_s(question: str, values: dict[str, str]) -> None:
    match = best(question)
    assert (match.query.name, dict(match.values)) == ("sales_forecast", values)
    assert match.confidence >= SURE


@pytest.mark.parametrize(
    ("question", "fits"),
    [
        ("previsão para 30 semanas", "sales_forecast"),
        ("previsão de mercearia para 40 semanas", "sales_forecast"),
        ("forecast 30 weeks grocery", "sales_forecast"),
        ("top 600 produtos", "top_products"),
        ("top 5000 products", "top_products"),
        ("1001 lojas com mais vendas", "store_ranking"),
    ],
)
def test_a_number_out_of_range_is_refused_and_no_other_query_is_asked_for_it(question: str, fits: str) -> None:
    match = best(question)
    assert match.query.name == fits
    assert match.confidence < MIN


def test_a_year_is_no_number_out_of_range() -> None:
    assert dict(best("top 2017 products").values) == {"from_date": "2017-01-01", "to_date": "2017-12-31"}
    assert best("forecast vs actual last 30 weeks").values == (("weeks", "30"),)


@pytest.mark.parametrize(
    ("question", "fits"),
    [
        ("Which supplier sells most cheese?", "suppliers"),
        ("promoções de sopa funcionaram?", "promotion_effect"),
        ("busiest hours for bakery", "traffic_by_hour"),
        ("novos clientes da mercearia", "new_vs_returning"),
        ("resgate de cupons em fraldas", "coupon_redemption"),
        ("top products in wine", "top_products"),
        ("produtos mais vendidos de café", "top_products"),
        ("vendas de queijo por loja", "store_ranking"),
        ("promoções de carne e frios funcionam?", "promotion_effect"),
        ("is grocery bigger than produce?", "dashboard_metrics"),
    ],
)
def test_a_value_that_the_query_cannot_take_is_not_dropped(question: str, fits: str) -> None:
    match = best(question)
    assert match.query.name == fits
    assert match.confidence < MIN


@pytest.mark.parametrize(
    "question",
    [
        "which supplier sells most shampoo?",
        "basket affinity with cakes",
        "efeito das promoções de xampu",
        "horário de pico no estacionamento",
        "new customers from Ohio",
    ],
)
def test_an_unknown_word_that_says_which_part_is_meant_is_not_dropped(question: str) -> None:
    assert confidence(question) < MIN


def test_a_verb_that_only_asks_is_no_future() -> None:
    assert best("vamos ver as vendas por semana").query.name == "sales_by_week"
    assert confidence("vamos ver as vendas por semana") >= SURE


def test_a_question_about_segments_is_not_kept_from_them_by_queries_that_take_none() -> None:
    assert best("customers by age").query.name == "customer_segments"
    assert confidence("customers by age") >= SURE
    assert confidence("households by income in produce") >= SURE


def test_relative_periods_count_from_the_period_s_default_end() -> None:
    assert dict(best("top products last week").values) == {"from_date": "2017-12-25", "to_date": "2017-12-31"}


def test_without_a_default_end_they_count_from_today(tmp_path: Path) -> None:
    matcher = Matcher(catalogue(tmp_path, orders=ORDERS), today=lambda: date(2026, 3, 10))
    assert best("orders per warehouse last month", matcher).values == (
        ("day_from", "2026-02-01"),
        ("day_to", "2026-02-28"),
    )
    assert best("orders per warehouse yesterday", matcher).values == (
        ("day_from", "2026-03-09"),
        ("day_to", "2026-03-09"),
    )


def test_an_open_period_fills_both_days_where_the_query_needs_them(tmp_path: Path) -> None:
    needed = ORDERS.replace("default: 2020-01-01, ", "").replace("default: 2030-12-31, ", "")
    matcher = Matcher(catalogue(tmp_path, orders=needed), today=lambda: date(2026, 3, 10))
    since, until = (
        best("orders per warehouse since 2025", matcher),
        best("orders per warehouse until May 2025", matcher),
    )
    assert dict(since.values) == {"day_from": "2025-01-01", "day_to": "2026-03-09"}
    assert dict(until.values) == {"day_from": "2020-01-01", "day_to": "2025-05-31"}
    assert confidence("orders per warehouse", matcher) < 0.1


def test_a_catalogue_without_any_declared_words_is_matched_by_names_and_titles(tmp_path: Path) -> None:
    matcher = Matcher(catalogue(tmp_path, orders=ORDERS, returns=RETURNS))
    assert best("show me the orders per warehouse in 2024", matcher).query.name == "orders"
    assert confidence("show me the orders per warehouse in 2024", matcher) >= MIN
    assert confidence("tell me a joke", matcher) < MIN


def test_a_query_whose_required_parameter_is_not_named_is_nearly_no_match(tmp_path: Path) -> None:
    words = "values:\n  reason: {damaged: [broken, danificado]}"
    matcher = Matcher(catalogue(tmp_path, orders=ORDERS, returns=RETURNS, vocabulary=words))
    assert confidence("returned parcels", matcher) < 0.1
    assert best("returned parcels that were broken", matcher).values == (("reason", "damaged"),)


def test_an_empty_catalogue_matches_nothing() -> None:
    assert Matcher(Catalogue()).matches("total sales") == []


@given(st.text(max_size=2_000))
@example("vendas 12 " * 200)
@example("zxcvbnm " * 250)
@example("12 " * 600)
@example("top " + "9" * 1_990)
@example("top " + "9." * 990)
@example("de " * 660)
@example("entre janeiro e " * 125)
@example("ﷺ" * 2_000)
@example("sales after 9999-12-31")
@example("vendas antes de 0001-01-01")
@settings(max_examples=60, deadline=None)
def test_no_text_raises_or_takes_more_than_so_many_calls(question: str) -> None:
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        matches = MATCHER.matches(question)
    finally:
        sys.setprofile(before)
    assert calls < MOST_CALLS
    for match in matches:
        bind(match.query.parameters, match.values)


ALL = ANSWERED + LATER_ANSWERED
SOME_WORDS = st.sampled_from(
    sorted({word for question, *_ in ALL for word in question.split()} | {"0", "-1", "1e9", "999999999999"})
)


@given(st.lists(SOME_WORDS, max_size=30))
@settings(max_examples=150, deadline=None)
def test_known_words_in_any_order_give_matches_that_bind(words: list[str]) -> None:
    for match in MATCHER.matches(" ".join(words), most=17):
        bind(match.query.parameters, match.values)
        assert 0 <= match.confidence <= 1
