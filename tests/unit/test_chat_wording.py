"""The sentences of answers, in two languages."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from bi_query.catalogue import NamedQuery, load_catalogue
from bi_query.catalogue_dir import demo_catalogue_dir
from bi_query.chat.wording import answered, cannot_answer, language_of
from bi_query.parameters import bind

from .chat_questions import ANSWERED

QUERIES = load_catalogue(demo_catalogue_dir()).queries
TYPES = {int: "BIGINT", float: "DOUBLE", str: "VARCHAR", bool: "BOOLEAN"}


def result(*rows: dict[str, Any], truncated: bool = False, **types: str) -> dict[str, Any]:
    """Rows as the query API gives them."""
    first = rows[0] if rows else {}
    columns = [
        {"name": name, "type": types.get(name, TYPES.get(type(value), "VARCHAR"))} for name, value in first.items()
    ]
    return {
        "columns": columns,
        "rows": [list(row.values()) for row in rows],
        "row_count": len(rows),
        "truncated": truncated,
    }


def said(language: Any, name: str, given: dict[str, str], answer: dict[str, Any]) -> str:
    query: NamedQuery = QUERIES[name]
    return answered(language, query, bind(query.parameters, given.items()), answer)


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("vendas por loja", "pt"),
        ("sales by store", "en"),
        ("top 10 lojas", "pt"),
        ("top 10 stores", "en"),
        ("Qual departamento vende mais?", "pt"),
        ("which department sells most", "en"),
        ("previsão", "pt"),
        ("forecast", "en"),
        ("", "en"),
    ],
)
def test_the_language_of_a_question_is_seen(question: str, language: str) -> None:
    assert language_of(question) == language


def test_every_development_question_with_a_portuguese_letter_is_portuguese() -> None:
    questions = [question for question, *_ in ANSWERED if set(question) & set("ãõçêôâ")]
    assert len(questions) > 20
    assert [question for question in questions if language_of(question) != "pt"] == []


def test_many_rows_say_what_they_are_for_which_period_and_filters_how_many_and_the_first() -> None:
    rows = [
        {"rank": 1, "product_type": "BANANAS", "sales_usd": 17219.59},
        {"rank": 2, "product_type": "X", "sales_usd": 1.0},
    ]
    given = {"department": "PRODUCE", "from_date": "2017-03-01", "to_date": "2017-03-31", "limit": "2"}
    assert said("en", "top_products", given, result(*rows)) == (
        "Top products for March 2017 with department = PRODUCE: 2 rows. "
        "The first: rank 1, product type BANANAS, sales US$ 17,219.59."
    )
    assert said("pt", "top_products", given, result(*rows)) == (
        "Produtos mais vendidos em março de 2017 com departamento = PRODUCE: 2 linhas. "
        "A primeira: posição 1, tipo de produto BANANAS, vendas US$ 17.219,59."
    )


def test_figures_are_said_before_descriptions_are() -> None:
    row = {"rank": 1, "product_id": 1082185, **{f"text_{i}": f"t{i}" for i in range(9)}}
    row |= {"manufacturer_id": 2, "sales_usd": 17219.59, "units": 300, "baskets": 200}
    sentence = said("en", "top_products", {"limit": "1"}, result(row))
    assert sentence == (
        "Top products for 2017: rank 1, product id 1082185, text 0 t0, text 1 t1, text 2 t2, sales US$ 17,219.59, "
        "units 300, baskets 200."
    )


def test_of_many_figures_the_first_are_said_after_what_they_are_of() -> None:
    row = {"rank": 1, "store_id": 367, **{f"n{i}": float(i) for i in range(1, 12)}}
    sentence = said("en", "store_ranking", {"limit": "1"}, result(row))
    assert sentence.endswith(": rank 1, store id 367, n1 1, n2 2, n3 3, n4 4, n5 5, n6 6.")


def test_the_product_is_said_even_when_it_is_the_default() -> None:
    assert "with product id = 1082185" in said("en", "product_trend", {}, result({"week": 1}))
    assert "com produto = 1082185" in said("pt", "product_trend", {}, result({"week": 1}))


def test_every_column_of_the_demo_has_a_portuguese_label() -> None:
    labels = load_catalogue(demo_catalogue_dir()).vocabulary.labels["pt"]
    said_names = {name for query in QUERIES.values() for name in query.parameters}
    assert said_names - set(labels) == set()


@pytest.mark.parametrize(
    ("first", "last", "english", "portuguese"),
    [
        ("2017-01-01", "2017-12-31", "for 2017", "em 2017"),
        ("2017-02-01", "2017-02-28", "for February 2017", "em fevereiro de 2017"),
        ("2017-05-01", "2017-05-01", "for 1 May 2017", "em 1º de maio de 2017"),
        (
            "2017-06-01",
            "2017-06-15",
            "from 1 June 2017 to 15 June 2017",
            "de 1º de junho de 2017 a 15 de junho de 2017",
        ),
    ],
)
def test_periods_are_said_as_people_say_them(first: str, last: str, english: str, portuguese: str) -> None:
    given = {"from_date": first, "to_date": last}
    assert said("en", "suppliers", given, result({"rank": 1})) == f"Suppliers {english}: 1."
    assert said("pt", "suppliers", given, result({"rank": 1})) == f"Fornecedores {portuguese}: 1."


def test_a_period_that_is_open_by_default_is_not_said() -> None:
    assert said("en", "coupon_redemption", {}, result({"campaigns": 27})) == "Coupon redemption: 27."


def test_one_number_is_said_alone_and_one_row_whole() -> None:
    assert (
        answered("pt", None, {"week": 50}, result({"total": 1234567.5})) == "O resultado com week = 50: 1.234.567,50."
    )
    row = {"store_id": 31782, "share_pct": 3.071, "ok": True, "none": None, "units": 50881}
    assert answered("en", None, {}, result(row)) == "The result: store id 31782, share 3.07%, ok yes, units 50,881."
    assert answered("pt", None, {}, result(row)) == "O resultado: store id 31782, share 3,07%, ok sim, units 50.881."


def test_numbers_and_days_that_json_carries_as_text_are_said_as_numbers_and_days() -> None:
    row = {"big": "12345678901234567890", "price": "0.50", "day": "2017-06-15", "text": "123"}
    types = {"big": "HUGEINT", "price": "DECIMAL(38,2)", "day": "DATE"}
    assert answered("pt", None, {}, result(row, **types)) == (
        "O resultado: big 12.345.678.901.234.567.890, price 0,50, day 15 de junho de 2017, text 123."
    )


def test_no_rows_and_cut_rows_are_said() -> None:
    assert said("en", "suppliers", {"department": "X"}, result()).endswith("X: no rows: nothing in the data fits.")
    rows = [{"n": number} for number in range(1000)]
    assert answered("pt", None, {}, result(*rows, truncated=True)).startswith(
        "O resultado: as primeiras 1.000 linhas, há mais"
    )


def test_texts_of_the_data_are_shown_without_control_characters_and_shortened() -> None:
    text = answered("en", None, {"p\n": "\x1b[2J"}, result({"a": "line\nbreak\u202e", "b": "y" * 500}))
    assert text.isprintable()
    assert "y" * 81 not in text


def test_that_it_cannot_answer_is_said_with_the_nearest_queries() -> None:
    nearest = [QUERIES["suppliers"], QUERIES["sales_by_week"]]
    assert cannot_answer("en", nearest).endswith("The nearest there is: Suppliers; Sales by week.")
    assert cannot_answer("pt", nearest).endswith("O mais próximo que há: Fornecedores; Vendas por semana.")
    assert "nearest" not in cannot_answer("en", [])


def test_a_day_of_a_query_that_a_model_wrote_is_said() -> None:
    assert answered("en", None, {"day": date(2017, 6, 1)}, result({"n": 1})) == "The result with day = 1 June 2017: 1."
