"""What a sentence states of several rows: the figure that was asked for, or that there are rows; never what stands first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bi_query.catalogue import Catalogue, load_catalogue
from bi_query.catalogue_dir import demo_catalogue_dir
from bi_query.chat.matcher import Matcher
from bi_query.chat.wishes import Wish
from bi_query.chat.wording import answered
from bi_query.parameters import bind
from bi_query.settings import Settings

from tests.support.small import FRESHNESS

MIN = Settings.model_fields["chat_min_confidence"].default
DEMO = load_catalogue(demo_catalogue_dir())
MATCHER = Matcher(DEMO)
TYPES = {int: "BIGINT", float: "DOUBLE", str: "VARCHAR"}
SHOPS = """/*---
title: Shops
ask: [top shops by rate, top shops by colour]
freshness: steady
says:
SAYS
parameters:
  sort_by: {type: string, default: amount, choices: [amount, visits], synonyms: {visits: [by visits]}}
  limit: {type: integer, default: 3, minimum: 1, maximum: 10}
---*/
select $sort_by, $limit
"""
VOCABULARY = "measures: {amount: [sales, amount], visits: [visits], rate: [rate], other: [colour]}\n"
BEST = "  best_by: [amount, visits, rate]"
RANKED = "  ranked_by: {sort_by: {amount: amount, visits: visits}}\n  best_by: [rate]"


def shops(folder: Path, says: str) -> Catalogue:
    """A catalogue of one query, with this `says`."""
    (folder / "queries").mkdir()
    (folder / "freshness.yaml").write_text(FRESHNESS)
    (folder / "vocabulary.yaml").write_text(VOCABULARY)
    (folder / "queries" / "shops.sql").write_text(SHOPS.replace("SAYS", says))
    return load_catalogue(folder)


def said(catalogue: Catalogue, question: str, *rows: dict[str, Any], truncated: bool = False, **given: str) -> str:
    """The sentence for a question to `shops` that found these rows."""
    query = catalogue.queries["shops"]
    columns = [{"name": name, "type": TYPES[type(value)]} for name, value in rows[0].items()]
    result = {"columns": columns, "rows": [list(row.values()) for row in rows], "truncated": truncated}
    wish = Matcher(catalogue).wish(query, question)
    return answered("en", query, bind(query.parameters, given.items()), result, wish)


ROWS = [
    {"shop": "a", "amount": 30.0, "visits": 1, "rate": 0.5},
    {"shop": "b", "amount": 20.0, "visits": 9, "rate": 0.7},
    {"shop": "c", "amount": 10.0, "visits": 9, "rate": 0.9},
]


def test_a_superlative_speaks_the_row_with_the_largest_of_what_it_is_about(tmp_path: Path) -> None:
    catalogue = shops(tmp_path, BEST)
    assert "The highest amount: shop a, " in said(catalogue, "best shop", *ROWS, limit="5")
    assert "The highest rate: shop c, " in said(catalogue, "which shop has the highest rate", *ROWS, limit="5")


def test_of_equal_figures_the_first_is_spoken(tmp_path: Path) -> None:
    assert "The highest visits: shop b, " in said(shops(tmp_path, BEST), "the most visits", *ROWS, limit="5")


def test_without_a_superlative_only_the_number_of_rows_is_said(tmp_path: Path) -> None:
    catalogue = shops(tmp_path, BEST)
    assert said(catalogue, "shops", *ROWS, limit="5") == "Shops: 3 rows, all in the result."


def test_what_may_be_in_a_row_that_was_left_out_is_not_said(tmp_path: Path) -> None:
    catalogue = shops(tmp_path, BEST)
    assert said(catalogue, "the most visits", *ROWS, limit="3") == "Shops: 3 rows, all in the result."
    assert (
        said(catalogue, "the most visits", *ROWS, limit="5", truncated=True)
        == "Shops: the first 3 rows, there are more."
    )
    assert "The highest amount: shop a, " in said(catalogue, "the most sales", *ROWS, limit="3"), "sorted by it"


def test_a_ranking_speaks_its_first_row_for_what_it_ranks_by_however_many_rows_are_left_out(tmp_path: Path) -> None:
    catalogue = shops(tmp_path, RANKED)
    by_visits = sorted(ROWS, key=lambda row: -row["visits"])
    assert "The first: shop b, " in said(catalogue, "top shops by visits", *by_visits, sort_by="visits")
    assert "The first: shop a, " in said(catalogue, "top shops", *ROWS)
    assert "shop" not in said(catalogue, "shops with the highest rate", *ROWS, limit="3").partition(": ")[2]


def test_the_figure_asked_for_is_said_wherever_its_column_stands(tmp_path: Path) -> None:
    rows = [{"shop": row["shop"], **{f"n{i}": 1.0 for i in range(9)}, **row} for row in ROWS]
    assert "rate 0.9" in said(shops(tmp_path, BEST), "the highest rate", *rows, limit="5")


def test_rows_that_are_no_answer_are_never_the_best(tmp_path: Path) -> None:
    catalogue = shops(tmp_path, BEST + "\n  not_best: {shop: [a]}")
    assert "The highest amount: shop b, " in said(catalogue, "best shop", *ROWS, limit="5")


def test_named_rows_are_spoken_with_the_declared_columns_and_no_others(tmp_path: Path) -> None:
    catalogue = shops(tmp_path, "  rows: {shop: {a: [alpha], c: [gamma]}}\n  said: [shop, visits]")
    assert said(catalogue, "visits of gamma", *ROWS) == "Shops: shop c, visits 9."
    assert said(catalogue, "alpha and gamma", *ROWS) == "Shops: shop a, visits 1; shop c, visits 9."
    assert said(catalogue, "shops", *ROWS) == "Shops: 3 rows, all in the result."


def test_rows_are_added_up_where_that_is_declared(tmp_path: Path) -> None:
    catalogue = shops(tmp_path, "  best_by: [amount, rate]\n  adds: [amount]\n  each: {town: [town]}")
    rows = [{"town": town, **row} for town, row in zip("xyy", ROWS, strict=True)]
    assert said(catalogue, "how much sales", *rows, limit="5") == "Shops: 3 rows. In total: amount 60."
    assert (
        said(catalogue, "town with the most sales", *rows, limit="5")
        == "Shops: 3 rows. The highest amount: town x, amount 30."
    )
    rows[0]["amount"] = 25.0
    assert (
        said(catalogue, "town with the most sales", *rows, limit="5")
        == "Shops: 3 rows. The highest amount: town y, amount 30."
    )
    assert said(catalogue, "town with the highest rate", *rows, limit="5") == "Shops: 3 rows, all in the result."
    assert said(catalogue, "sales by town", *rows, limit="5") == "Shops: 3 rows, all in the result."
    of_one_town = [{**row, "town": "x"} for row in rows]
    assert said(catalogue, "sales by town", *of_one_town, limit="5").endswith("In total: amount 55.")
    assert said(catalogue, "how much sales", *rows, limit="3") == "Shops: 3 rows, all in the result.", (
        "there may be more"
    )


def test_a_superlative_about_what_a_query_cannot_compare_is_refused(tmp_path: Path) -> None:
    matcher = Matcher(shops(tmp_path, BEST))
    surely = {
        question: matcher.matches(question)[0].confidence for question in ("top shops by rate", "top shops by colour")
    }
    assert surely["top shops by rate"] >= MIN > surely["top shops by colour"]


def test_texts_of_the_data_are_shortened_and_shown_without_control_characters_in_a_spoken_row(tmp_path: Path) -> None:
    row = {"shop": "x\x1b[2J" + "y" * 500, "amount": 99.0, "visits": 1, "rate": 0.1}
    sentence = said(shops(tmp_path, BEST), "best shop", *ROWS, row, limit="9")
    assert "amount 99" in sentence
    assert sentence.isprintable()
    assert "y" * 81 not in sentence


@pytest.mark.parametrize(
    ("question", "query", "best"),
    [
        ("which department has the highest discount?", "department_performance", ["discount_pct"]),
        ("cresceu mais em vendas por unidade", "product_trend", ["", "sales_per_unit_usd"]),
        ("Qual loja vendeu mais unidades?", "sales_by_week", ["units"]),
        ("melhor dia da semana para vendas", "traffic_by_hour", ["sales_usd"]),
        ("which age group spends the most", "customer_segments", ["sales_per_household_usd"]),
        ("what do customers buy the most", "sales_by_week", []),
    ],
)
def test_a_superlative_is_about_the_figure_beside_it(question: str, query: str, best: list[str]) -> None:
    says = DEMO.queries[query].says
    wish = MATCHER.wish(DEMO.queries[query], question)
    assert wish.is_best
    found = [next((column for column in says.measures if column in columns), "") for columns in wish.best]
    assert found == best


@pytest.mark.parametrize(
    "question",
    ["vendas em maio", "Vendemos mais em dezembro do que no período anterior?", "mais de 100 cestas", "a mais"],
)
def test_may_and_more_are_no_superlatives(question: str) -> None:
    assert not MATCHER.wish(DEMO.queries["sales_by_week"], question).is_best


@pytest.mark.parametrize(
    ("question", "assumed"),
    [
        ("quanto vamos vender na próxima semana?", {"department": "ALL DEPARTMENTS"}),
        ("sales forecast by department", {}),
        ("Which departments will sell most?", {}),
    ],
)
def test_the_total_is_meant_unless_the_question_speaks_of_departments(question: str, assumed: dict[str, str]) -> None:
    assert dict(MATCHER.assumed(DEMO.queries["sales_forecast"], [question])) == assumed


def test_words_that_differ_by_an_ending_alone_keep_their_values_apart() -> None:
    for words, sort_by in (("por cestas", "baskets"), ("por cesta", "sales_per_basket")):
        assert dict(MATCHER.matches(f"top 5 lojas {words} em junho")[0].values)["sort_by"] == sort_by


def test_sql_that_a_model_wrote_has_its_rows_counted() -> None:
    result = {"columns": [{"name": "n", "type": "BIGINT"}], "rows": [[1], [2]], "truncated": False}
    assert answered("en", None, {}, result, Wish(is_best=True)) == "The result: 2 rows, all in the result."
