"""The demo's sales answers, checked against plain SQL on the raw Parquet files."""

from __future__ import annotations

from datetime import date, timedelta

import duckdb
import pytest

from tests.support.demo_data import SPRING, YEAR, Demo, Row, close, fetch, value, with_local_days


@pytest.fixture(scope="module")
def lines(demo: Demo) -> duckdb.DuckDBPyConnection:
    return with_local_days(demo)


@pytest.mark.parametrize(
    ("period", "store", "department"),
    [
        (YEAR, None, None),
        (SPRING, None, None),
        ({"from_date": "2017-05-02", "to_date": "2017-05-30"}, None, None),
        ({"from_date": "2017-02-01", "to_date": "2017-02-28"}, None, "PRODUCE"),
        ({"from_date": "2017-11-05", "to_date": "2017-11-05"}, None, None),
        (SPRING, 367, None),
        (YEAR, 367, "MEAT"),
    ],
)
def test_top_products_are_those_of_a_plain_sum(
    demo: Demo, lines: duckdb.DuckDBPyConnection, period: Row, store: int | None, department: str | None
) -> None:
    answer = demo.rows("top_products", **period, store_id=store, department=department, limit=50)
    plain = fetch(
        lines,
        """
        select product_id, round(sum(sales_value), 2) as sales from lines
        where day between ? and ? and store_id = coalesce(?, store_id) and department = coalesce(?, department)
        group by product_id order by sales desc, product_id limit 50
        """,
        period["from_date"],
        period["to_date"],
        store,
        department,
    )
    assert [row["product_id"] for row in answer] == [product for product, _ in plain]
    assert all(close(row["sales_usd"], sales) for row, (_, sales) in zip(answer, plain, strict=True))
    assert [row["rank"] for row in answer] == list(range(1, len(answer) + 1))


def test_top_products_by_units_never_count_gasoline(demo: Demo, lines: duckdb.DuckDBPyConnection) -> None:
    answer = demo.rows("top_products", **SPRING, sort_by="units", limit=10)
    plain = fetch(
        lines,
        """
        select product_id, sum(quantity) as units from lines join products using (product_id)
        where day between ? and ? and product_type not like 'GASOLINE%'
        group by product_id order by units desc, product_id limit 10
        """,
        *SPRING.values(),
    )
    assert [(row["product_id"], row["units"]) for row in answer] == plain


@pytest.mark.parametrize(("store", "department"), [(None, None), (367, None), (None, "PRODUCE"), (367, "MEAT")])
def test_dashboard_metrics_compare_with_the_period_just_before(
    demo: Demo, lines: duckdb.DuckDBPyConnection, store: int | None, department: str | None
) -> None:
    answer = demo.rows("dashboard_metrics", **SPRING, store_id=store, department=department)
    first, last = date.fromisoformat(SPRING["from_date"]), date.fromisoformat(SPRING["to_date"])
    previous_last = first - timedelta(days=1)
    previous_first = previous_last - (last - first)
    assert {(row["previous_from_date"], row["previous_to_date"], row["previous_complete"]) for row in answer} == {
        (previous_first.isoformat(), previous_last.isoformat(), previous_first >= date(2017, 1, 1))
    }
    metrics = {row["metric"]: row for row in answer}
    for column, period in (
        ("current_value", (first, last)),
        ("previous_value", (previous_first, previous_last)),
    ):
        [[sales, baskets, households, discount]] = fetch(
            lines,
            """
            select sum(sales_value), count(distinct basket_id), count(distinct household_id),
                   sum(retail_disc + coupon_match_disc)
            from lines
            where day between ? and ? and store_id = coalesce(?, store_id) and department = coalesce(?, department)
            """,
            *period,
            store,
            department,
        )
        assert close(metrics["sales"][column], sales)
        assert metrics["baskets"][column] == baskets
        assert metrics["households"][column] == households
        assert close(metrics["discount"][column], discount)
        assert close(metrics["sales_per_basket"][column], sales / baskets)
        assert close(metrics["discount_rate"][column], 100 * discount / (sales + discount))


def test_a_dashboard_says_when_the_earlier_period_is_not_in_the_data(demo: Demo) -> None:
    answer = demo.rows("dashboard_metrics", from_date="2017-01-10", to_date="2017-01-31")
    assert answer
    assert not any(row["previous_complete"] for row in answer)
    assert all(row["change_pct"] is None for row in answer)
    early = demo.rows("dashboard_metrics", from_date="2017-01-10", to_date="2017-01-12")
    assert all(row["previous_complete"] and row["change_pct"] is not None for row in early)


def test_departments_stores_weeks_segments_and_hours_all_add_up_to_the_same_sales(
    demo: Demo, lines: duckdb.DuckDBPyConnection
) -> None:
    total = value(lines, "select sum(sales_value) from lines where day between ? and ?", *SPRING.values())
    metrics = {row["metric"]: row["current_value"] for row in demo.rows("dashboard_metrics", **SPRING)}
    assert close(metrics["sales"], total)
    parts = [
        demo.rows("department_performance", **SPRING),
        demo.rows("store_ranking", **SPRING, limit=1000),
        demo.rows("customer_segments", **SPRING, dimension="household_size"),
        demo.rows("traffic_by_hour", **SPRING),
        demo.rows("discount_analysis", **SPRING, min_sales_usd=0),
        demo.rows("discount_analysis", **SPRING, min_sales_usd=0, level="category", limit=1000),
    ]
    for rows in parts:
        assert close(sum(row["sales_usd"] for row in rows), total)
    year = value(lines, "select sum(sales_value) from lines")
    assert close(sum(row["sales_usd"] for row in demo.rows("sales_by_week", **YEAR)), year)


@pytest.mark.parametrize(("store", "department"), [(None, None), (367, None), (None, "FLORAL"), (367, "DELI")])
def test_sales_by_week_counts_the_data_s_own_weeks(
    demo: Demo, lines: duckdb.DuckDBPyConnection, store: int | None, department: str | None
) -> None:
    answer = {row["week"]: row for row in demo.rows("sales_by_week", **YEAR, store_id=store, department=department)}
    plain = fetch(
        lines,
        """
        select week, sum(sales_value), count(distinct basket_id), count(distinct household_id) from lines
        where store_id = coalesce(?, store_id) and department = coalesce(?, department)
        group by week order by week
        """,
        store,
        department,
    )
    assert len(answer) == 53
    for week, sales, baskets, households in plain:
        assert close(answer[week]["sales_usd"], sales)
        assert (answer[week]["baskets"], answer[week]["households"]) == (baskets, households)
    assert sum(row["baskets"] for row in answer.values()) == sum(baskets for _, _, baskets, _ in plain)


def test_the_one_day_week_is_not_full_and_christmas_week_is(demo: Demo) -> None:
    weeks = demo.rows("sales_by_week", **YEAR)
    assert [row["week"] for row in weeks if not row["full_week"]] == [1]
    assert (weeks[0]["trading_days"], weeks[-1]["trading_days"]) == (1, 6)
    assert weeks[-1]["week_start"] == "2017-12-25"
    starts = [date.fromisoformat(row["week_start"]) for row in weeks]
    assert all(start.weekday() == 0 for start in starts)
    assert [row["week_start"] for row in demo.rows("sales_by_week", from_date="2017-03-15", to_date="2017-03-20")] == [
        "2017-03-13",
        "2017-03-20",
    ]


def test_stores_are_ranked_by_what_was_asked(demo: Demo, lines: duckdb.DuckDBPyConnection) -> None:
    orders = {"sales": "sum(sales_value)", "baskets": "count(distinct basket_id)"}
    orders["sales_per_basket"] = "sum(sales_value) / count(distinct basket_id)"
    orders |= {"units": "sum(quantity)", "households": "count(distinct household_id)"}
    for sort_by, expression in orders.items():
        answer = demo.rows("store_ranking", **SPRING, department="GROCERY", sort_by=sort_by, min_baskets=20, limit=15)
        plain = fetch(
            lines,
            f"""
            select store_id, count(distinct basket_id), count(distinct household_id) from lines
            where day between ? and ? and department = 'GROCERY'
            group by store_id having count(distinct basket_id) >= 20
            order by round({expression}, 6) desc, store_id limit 15
            """,
            *SPRING.values(),
        )
        assert [(row["store_id"], row["baskets"], row["households"]) for row in answer] == plain


def test_department_penetration_is_the_part_of_baskets_that_hold_it(
    demo: Demo, lines: duckdb.DuckDBPyConnection
) -> None:
    answer = {row["department"]: row for row in demo.rows("department_performance", **SPRING, store_id=367)}
    plain = fetch(
        lines,
        """
        select department, 100.0 * count(distinct basket_id) / any_value((
            select count(distinct basket_id) from lines where day between $1 and $2 and store_id = 367
        ))
        from lines where day between $1 and $2 and store_id = 367 group by department
        """,
        *SPRING.values(),
    )
    for department, share in plain:
        assert close(answer[department]["basket_penetration_pct"], share)


def test_suppliers_are_manufacturers_with_their_change_and_private_label(
    demo: Demo, lines: duckdb.DuckDBPyConnection
) -> None:
    answer = demo.rows("suppliers", from_date="2017-07-01", to_date="2017-09-30", department="PASTRY", limit=20)
    plain = fetch(
        lines,
        """
        select manufacturer_id,
            sum(sales_value) filter (where day >= '2017-07-01') as sales,
            coalesce(sum(sales_value) filter (where day < '2017-07-01'), 0),
            coalesce(sum(sales_value) filter (where day >= '2017-07-01' and brand = 'Private'), 0)
        from lines join products using (product_id)
        where lines.department = 'PASTRY' and day between date '2017-07-01' - 92 and '2017-09-30'
        group by manufacturer_id having sales is not null order by round(sales, 2) desc, manufacturer_id limit 20
        """,
    )
    assert [row["manufacturer_id"] for row in answer] == [row[0] for row in plain]
    for row, (_, sales, previous, private) in zip(answer, plain, strict=True):
        assert close(row["sales_usd"], sales)
        assert close(row["previous_sales_usd"], previous)
        assert close(row["private_label_pct"], 100 * private / sales)
    reach = value(
        lines,
        """
        select count(distinct household_id) from lines join products using (product_id)
        where lines.department = 'PASTRY' and manufacturer_id = ?
        """,
        answer[0]["manufacturer_id"],
    )
    assert answer[0]["households"] == reach


@pytest.mark.parametrize("sort_by", ["sales", "change", "units", "baskets"])
def test_departments_come_in_the_order_asked_for_with_unknown_figures_last(demo: Demo, sort_by: str) -> None:
    column = {"sales": "sales_usd", "change": "change_pct"}.get(sort_by, sort_by)
    by_sales = demo.rows("department_performance", **SPRING)
    rows = demo.rows("department_performance", **SPRING, sort_by=sort_by)
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert in_order(rows, column)
    without_rank = [{key: value for key, value in row.items() if key != "rank"} for row in rows + by_sales]
    assert all(without_rank.count(row) == 2 for row in without_rank), "the same figures in another order"
    assert demo.rows("department_performance", **SPRING, sort_by=sort_by, limit=3) == rows[:3]


@pytest.mark.parametrize(("sort_by", "column"), [("sales", "sales_usd"), ("change", "change_pct"), ("units", "units")])
def test_suppliers_come_in_the_order_asked_for_those_below_the_least_sales_left_out(
    demo: Demo, sort_by: str, column: str
) -> None:
    given = {"from_date": "2017-07-01", "to_date": "2017-09-30", "min_sales_usd": 1000}
    rows = demo.rows("suppliers", **given, sort_by=sort_by, limit=1000)
    assert in_order(rows, column)
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert min(row["sales_usd"] for row in rows) >= 1000
    figures = {row["manufacturer_id"]: (row["share_pct"], row["change_pct"]) for row in demo.rows("suppliers", **given)}
    assert figures.items() <= {row["manufacturer_id"]: (row["share_pct"], row["change_pct"]) for row in rows}.items()


@pytest.mark.parametrize(("sort_by", "column"), [("rate", "discount_pct"), ("discount", "discount_usd")])
def test_discounts_come_in_the_order_asked_for(demo: Demo, sort_by: str, column: str) -> None:
    rows = demo.rows("discount_analysis", **SPRING, level="category", sort_by=sort_by, limit=1000)
    assert len(rows) > 100
    assert in_order(rows, column)


def in_order(rows: list[Row], column: str) -> bool:
    """Whether the largest figure comes first, and no figure after all others."""
    figures = [row[column] for row in rows]
    known = [figure for figure in figures if figure is not None]
    return figures == sorted(known, reverse=True) + [None] * (len(figures) - len(known))


WITH_DEPARTMENT = [
    "top_products",
    "dashboard_metrics",
    "sales_forecast",
    "forecast_accuracy",
    "forecast_backtest",
]
WITH_DEPARTMENT += ["suppliers", "sales_by_week", "store_ranking", "promotion_effect", "customer_segments"]
WITH_DEPARTMENT += ["discount_analysis"]
WITH_STORE = [
    "top_products",
    "dashboard_metrics",
    "sales_by_week",
    "department_performance",
    "customer_segments",
]
WITH_STORE += ["new_vs_returning", "traffic_by_hour", "product_trend"]


@pytest.mark.parametrize("query", WITH_DEPARTMENT)
def test_an_unknown_department_gives_no_rows(demo: Demo, query: str) -> None:
    assert demo.rows(query, department="no such department") == []
    assert demo.rows(query, department="GROCERY") != []


@pytest.mark.parametrize("query", WITH_STORE)
def test_an_unknown_store_gives_no_rows(demo: Demo, query: str) -> None:
    assert demo.rows(query, store_id=2_000_000_000) == []
    assert demo.rows(query, store_id=367) not in ([], demo.rows(query))


@pytest.mark.parametrize(
    "query", ["top_products", "suppliers", "store_ranking", "basket_affinity", "discount_analysis"]
)
def test_a_smaller_limit_gives_the_first_rows_of_a_larger_one(demo: Demo, query: str) -> None:
    longer = demo.rows(query, limit=15)
    assert len(longer) == 15
    assert demo.rows(query, limit=4) == longer[:4]


def test_departments_named_in_an_answer_are_the_one_asked_for(demo: Demo) -> None:
    for query in (
        "top_products",
        "discount_analysis",
        "promotion_effect",
        "sales_forecast",
        "forecast_backtest",
    ):
        assert {row["department"] for row in demo.rows(query, department="MEAT")} == {"MEAT"}


def test_a_period_that_ends_before_it_starts_gives_no_rows(demo: Demo) -> None:
    for query in (
        "top_products",
        "suppliers",
        "store_ranking",
        "sales_by_week",
        "traffic_by_hour",
        "customer_segments",
    ):
        assert demo.rows(query, from_date="2017-06-30", to_date="2017-06-01") == []
