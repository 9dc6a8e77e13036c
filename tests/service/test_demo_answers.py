"""The demo catalogue's answers, checked against the raw Parquet with SQL and Python written apart from the models.

`demo.rows(query, **parameters)` asks the service; `demo.raw` is a DuckDB connection with views over the raw files. Nothing
here uses a model's table but the two tests that build the forecast's models again, on changed data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, timedelta
from math import sqrt
from pathlib import Path
from typing import Any, Protocol

import duckdb
import pytest

MODELS = Path(__file__).resolve().parents[2] / "services" / "query" / "catalogue" / "models"
FORECAST_MODELS = ("sales_lines", "calendar", "calendar_weeks", "basket_departments", "department_weeks")
FORECAST_MODELS += ("forecast_parameters", "forecast_steps")
YEAR = {"from_date": "2017-01-01", "to_date": "2017-12-31"}
SPRING = {"from_date": "2017-03-08", "to_date": "2017-05-17"}
# A cent: what rounding in the answer may take away.
CENT = 0.0101
Row = dict[str, Any]


class Demo(Protocol):
    """What tests/conftest.py provides."""

    raw: duckdb.DuckDBPyConnection

    def rows(self, query: str, /, **parameters: Any) -> list[Row]:
        """A named query's rows, as the service answers them: dates are ISO text."""


@pytest.fixture(scope="module")
def lines(demo: Demo) -> Iterator[duckdb.DuckDBPyConnection]:
    """The raw connection with `lines`: sales lines with local day (DuckDB's time zone database) and department."""
    demo.raw.execute(
        """
        create or replace temp table lines as
        select
            t.*,
            coalesce(p.department, 'UNKNOWN') as department,
            p.product_category as category,
            timezone('America/New_York', timezone('UTC', t.transaction_timestamp)) as local_time,
            timezone('America/New_York', timezone('UTC', t.transaction_timestamp))::date as day
        from transactions t left join products p on p.product_id = t.product_id
        """
    )
    yield demo.raw
    demo.raw.execute("drop table lines")


def fetch(connection: duckdb.DuckDBPyConnection, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """All rows of a statement."""
    return connection.execute(sql, list(values)).fetchall()


def value(connection: duckdb.DuckDBPyConnection, sql: str, *values: Any) -> Any:
    """The only value of a statement."""
    [[result]] = fetch(connection, sql, *values)
    return result


def close(left: float, right: float) -> bool:
    """Equal up to a rounded cent."""
    return abs(left - right) <= CENT


# --- products, totals, parts -------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("store", "department"), [(None, None), (367, None), (None, "PRODUCE"), (367, "MEAT")]
)
def test_dashboard_metrics_compare_with_the_period_just_before(
    demo: Demo, lines: duckdb.DuckDBPyConnection, store: int | None, department: str | None
) -> None:
    answer = demo.rows("dashboard_metrics", **SPRING, store_id=store, department=department)
    first, last = date.fromisoformat(SPRING["from_date"]), date.fromisoformat(SPRING["to_date"])
    previous_last = first - timedelta(days=1)
    previous_first = previous_last - (last - first)
    assert {
        (row["previous_from_date"], row["previous_to_date"], row["previous_complete"]) for row in answer
    } == {(previous_first.isoformat(), previous_last.isoformat(), previous_first >= date(2017, 1, 1))}
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


@pytest.mark.parametrize(
    ("store", "department"), [(None, None), (367, None), (None, "FLORAL"), (367, "DELI")]
)
def test_sales_by_week_counts_the_data_s_own_weeks(
    demo: Demo, lines: duckdb.DuckDBPyConnection, store: int | None, department: str | None
) -> None:
    answer = {
        row["week"]: row for row in demo.rows("sales_by_week", **YEAR, store_id=store, department=department)
    }
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
    assert [
        row["week_start"] for row in demo.rows("sales_by_week", from_date="2017-03-15", to_date="2017-03-20")
    ] == [
        "2017-03-13",
        "2017-03-20",
    ]


def test_stores_are_ranked_by_what_was_asked(demo: Demo, lines: duckdb.DuckDBPyConnection) -> None:
    orders = {"sales": "sum(sales_value)", "baskets": "count(distinct basket_id)"}
    orders["sales_per_basket"] = "sum(sales_value) / count(distinct basket_id)"
    for sort_by, expression in orders.items():
        answer = demo.rows(
            "store_ranking", **SPRING, department="GROCERY", sort_by=sort_by, min_baskets=20, limit=15
        )
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
    answer = demo.rows(
        "suppliers", from_date="2017-07-01", to_date="2017-09-30", department="PASTRY", limit=20
    )
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


# --- baskets, promotions, customers, coupons, prices -------------------------------------------------------------------


def test_affinity_counts_baskets_that_hold_both_categories(
    demo: Demo, lines: duckdb.DuckDBPyConnection
) -> None:
    answer = demo.rows(
        "basket_affinity", category="BEEF", sort_by="baskets", min_baskets=50, min_lift=0, limit=3
    )
    kept = "category is not null and department not in ('FUEL', 'COUPON')"
    total = value(lines, f"select count(distinct basket_id) from lines where {kept}")
    for row in answer:
        baskets = "select distinct basket_id from lines where category = ? and " + kept
        both = value(
            lines, f"select count(*) from ({baskets} intersect {baskets})", "BEEF", row["other_category"]
        )
        beef = value(lines, f"select count(*) from ({baskets})", "BEEF")
        other = value(lines, f"select count(*) from ({baskets})", row["other_category"])
        assert (row["baskets_with_both"], row["baskets_with_category"], row["baskets_with_other"]) == (
            both,
            beef,
            other,
        )
        assert abs(row["confidence_pct"] - 100 * both / beef) < 0.01
        assert abs(row["lift"] - both * total / (beef * other)) < 0.001
    assert {row["category"] for row in answer} == {"BEEF"}


def test_promotion_effect_matches_a_week_by_week_grid(demo: Demo, lines: duckdb.DuckDBPyConnection) -> None:
    answer = {
        row["promotion_type"]: row
        for row in demo.rows("promotion_effect", department="SALAD BAR", min_weeks=1)
    }
    # Every product of the department in every covered store that sold it, times every full week of the product's life.
    plain = fetch(
        lines,
        """
        with sold as (
            select product_id, store_id, week, sum(sales_value) as sales from lines
            where week >= 2 and department = 'SALAD BAR' group by all
        ),
        grid as (
            select pairs.product_id, store_id, week
            from (select distinct product_id, store_id from sold where store_id in (select store_id from promotions)) pairs
            join (select product_id, unnest(range(min(week), max(week) + 1)) as week from sold group by 1) life
                on life.product_id = pairs.product_id
        ),
        placed as (
            select product_id, store_id, week, max(display_location <> '0') as display, max(mailer_location <> '0') as mailer
            from promotions where product_id in (select product_id from sold) group by all
        ),
        cells as (
            select g.*, coalesce(sales, 0) as sales,
                case when display and mailer then 'display and mailer' when display then 'display'
                    when mailer then 'mailer' end as kind
            from grid g left join sold using (product_id, store_id, week)
            left join placed using (product_id, store_id, week)
        ),
        usual as (select product_id, store_id, avg(sales) as usual from cells where kind is null group by all)
        select kind, count(*), sum(sales), sum(usual) from cells join usual using (product_id, store_id)
        where kind is not null group by kind
        """,
    )
    assert plain
    assert set(answer) == {kind for kind, *_ in plain}
    for kind, weeks, sales, usual in plain:
        assert answer[kind]["compared_product_store_weeks"] == weeks
        assert close(answer[kind]["promoted_sales_usd"], sales)
        assert abs(answer[kind]["usual_sales_usd"] - usual) < 0.05
        assert abs(answer[kind]["uplift_pct"] - 100 * (sales / usual - 1)) < 0.1


def test_segments_hold_the_households_that_gave_that_answer(
    demo: Demo, lines: duckdb.DuckDBPyConnection
) -> None:
    answer = {row["segment"]: row for row in demo.rows("customer_segments", **SPRING, dimension="income")}
    plain = fetch(
        lines,
        """
        select coalesce(income, 'UNKNOWN'), count(distinct household_id), sum(sales_value), count(distinct basket_id)
        from lines left join demographics using (household_id) where day between ? and ? group by 1
        """,
        *SPRING.values(),
    )
    assert set(answer) == {segment for segment, *_ in plain}
    for segment, households, sales, baskets in plain:
        assert (answer[segment]["households"], answer[segment]["baskets"]) == (households, baskets)
        assert close(answer[segment]["sales_usd"], sales)
        assert close(answer[segment]["sales_per_household_usd"], sales / households)


def test_coupon_redemption_counts_households_once(demo: Demo) -> None:
    answer = demo.rows("coupon_redemption", campaign_type="Type A")
    plain = fetch(
        demo.raw,
        """
        select campaign_id, (select count(*) from campaigns c where c.campaign_id = d.campaign_id),
            (select count(*) from coupon_redemptions r where r.campaign_id = d.campaign_id),
            (select count(distinct household_id) from coupon_redemptions r where r.campaign_id = d.campaign_id)
        from campaign_descriptions d where campaign_type = 'Type A'
        """,
    )
    columns = ("campaign_id", "households_targeted", "redemptions", "households_redeeming")
    assert sorted(tuple(row[column] for column in columns) for row in answer) == sorted(plain)
    running = [row for row in demo.rows("coupon_redemption") if not row["complete"]]
    assert running
    assert all(row["end_date"] > "2017-12-31" for row in running)
    assert all(row["complete"] for row in demo.rows("coupon_redemption", complete_only=True))


def test_a_household_is_new_once_and_reactivated_after_its_pause(
    demo: Demo, lines: duckdb.DuckDBPyConnection
) -> None:
    answer = {row["week"]: row for row in demo.rows("new_vs_returning", **YEAR, inactive_days=28)}
    days: dict[int, list[tuple[date, int]]] = {}
    for household, day, week in fetch(
        lines, "select distinct household_id, day, week from lines order by 1, 2"
    ):
        days.setdefault(household, []).append((day, week))
    counts: dict[int, dict[str, int]] = {
        week: {"new": 0, "active": 0, "reactivated": 0} for week in range(1, 54)
    }
    for visits in days.values():
        seen: set[int] = set()
        before: date | None = None
        for day, week in visits:
            if week not in seen:
                kind = "new" if before is None else "active" if (day - before).days <= 28 else "reactivated"
                counts[week][kind] += 1
            seen.add(week)
            before = day
    for week, kinds in counts.items():
        assert {kind: answer[week][f"{kind}_households"] for kind in kinds} == kinds
    assert sum(row["new_households"] for row in answer.values()) == len(days)


def test_discounts_are_the_difference_between_list_value_and_sales(
    demo: Demo, lines: duckdb.DuckDBPyConnection
) -> None:
    answer = demo.rows("discount_analysis", **SPRING, department="MEAT", level="category", min_sales_usd=0)
    plain = fetch(
        lines,
        """
        select coalesce(category, 'UNKNOWN'), sum(sales_value), sum(retail_disc + coupon_match_disc), count(*) from lines
        where department = 'MEAT' and day between ? and ? group by 1
        """,
        *SPRING.values(),
    )
    found = {row["product_category"]: row for row in answer}
    assert set(found) == {category for category, *_ in plain}
    for category, sales, discount, count in plain:
        assert close(found[category]["sales_usd"], sales)
        assert close(found[category]["discount_usd"], discount)
        assert found[category]["line_count"] == count


def test_hours_and_days_are_local_through_both_clock_changes(
    demo: Demo, lines: duckdb.DuckDBPyConnection
) -> None:
    for period in (("2017-03-06", "2017-03-19"), ("2017-10-30", "2017-11-12"), ("2017-01-01", "2017-12-31")):
        answer = demo.rows("traffic_by_hour", from_date=period[0], to_date=period[1])
        plain = fetch(
            lines,
            """
            select isodow(day), hour(local_time), count(distinct basket_id) from lines where day between ? and ?
            group by all order by all
            """,
            *period,
        )
        assert [(row["iso_weekday"], row["local_hour"], row["baskets"]) for row in answer] == plain
    # The longest Sunday of the year still ends at midnight: no line falls on the wrong day.
    for day in ("2017-03-12", "2017-11-05", "2017-11-06"):
        metrics = {row["metric"]: row for row in demo.rows("dashboard_metrics", from_date=day, to_date=day)}
        assert close(
            metrics["sales"]["current_value"],
            value(lines, "select sum(sales_value) from lines where day = ?", day),
        )


def test_a_product_s_trend_has_every_week_and_its_sales(demo: Demo, lines: duckdb.DuckDBPyConnection) -> None:
    for store in (None, 367):
        answer = demo.rows("product_trend", product_id=1082185, **YEAR, store_id=store)
        plain = fetch(
            lines,
            """
            select week, sum(sales_value) from lines where product_id = 1082185 and store_id = coalesce(?, store_id)
            group by week
            """,
            store,
        )
        assert [row["week"] for row in answer] == list(range(1, 54))
        sales = dict(plain)
        assert all(close(row["sales_usd"], sales.get(row["week"], 0)) for row in answer)


# --- parameters --------------------------------------------------------------------------------------------------------

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


# --- the forecast ------------------------------------------------------------------------------------------------------

ALPHAS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
EFFECTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
FIRST_WEEK, LAST_WEEK, BACKTEST_WEEKS = 2, 53, 8


def weekly_sales(lines: duckdb.DuckDBPyConnection, department: str) -> list[float]:
    """Sales of weeks 2 to 53 (the full ones), zero where nothing was sold."""
    where = "true" if department == "ALL DEPARTMENTS" else "department = ?"
    values = [] if department == "ALL DEPARTMENTS" else [department]
    sales = dict(
        fetch(lines, f"select week, sum(sales_value) from lines where {where} group by week", *values)
    )
    return [sales.get(week, 0.0) for week in range(FIRST_WEEK, LAST_WEEK + 1)]


def month_start_share(week: int) -> float:
    """Part of a week's days that are a month's first to seventh."""
    monday = date(2016, 12, 26) + timedelta(weeks=week - 1)
    return sum((monday + timedelta(days=day)).day <= 7 for day in range(7)) / 7


def smooth(sales: list[float], alpha: float, effect: float) -> tuple[list[float], float, float]:
    """Exponential smoothing: one-step forecasts from the fifth week on, last level, adjusted error spread."""
    factors = [1 + effect * month_start_share(FIRST_WEEK + index) for index in range(len(sales))]
    level = sum(sales[index] / factors[index] for index in range(4)) / 4
    forecasts, squares = [], 0.0
    for index in range(4, len(sales)):
        forecasts.append(level * factors[index])
        error = sales[index] / factors[index] - level
        level += alpha * error
        squares += error * error
    return forecasts, level, sqrt(squares / (len(sales) - 4))


def choose(training: list[float]) -> tuple[float, float]:
    """The parameters with the smallest mean squared one-step error."""

    def score(candidate: tuple[float, float]) -> float:
        forecasts, _, _ = smooth(training, *candidate)
        return round(
            sum((a - f) ** 2 for a, f in zip(training[4:], forecasts, strict=True)) / len(forecasts), 6
        )

    return min(
        ((alpha, effect) for alpha in ALPHAS for effect in EFFECTS), key=lambda item: (score(item), item)
    )


@pytest.mark.parametrize("department", ["GROCERY", "MEAT-PCKGD", "GARDEN CENTER", "ALL DEPARTMENTS"])
def test_the_reported_backtest_is_what_python_finds_from_the_raw_sales(
    demo: Demo, lines: duckdb.DuckDBPyConnection, department: str
) -> None:
    sales = weekly_sales(lines, department)
    alpha, effect = choose(sales[:-BACKTEST_WEEKS])
    forecasts, level, spread = smooth(sales, alpha, effect)
    actual, last_forecasts, naive = sales[-8:], forecasts[-8:], sales[-9:-1]
    errors = [abs(a - f) for a, f in zip(actual, last_forecasts, strict=True)]
    naive_errors = [abs(a - n) for a, n in zip(actual, naive, strict=True)]

    answer = demo.rows("sales_forecast", department=department, weeks=8)
    for row in answer:
        horizon = row["horizon_weeks"]
        factor = 1 + effect * month_start_share(LAST_WEEK + horizon)
        width = 1.2816 * spread * factor * sqrt(1 + (horizon - 1) * alpha**2)
        assert (row["alpha"], row["month_start_effect"]) == (alpha, effect)
        assert close(row["forecast_usd"], level * factor)
        assert close(row["upper_80_usd"], level * factor + width)
        assert close(row["backtest_mae_usd"], sum(errors) / 8)
        assert close(row["backtest_naive_mae_usd"], sum(naive_errors) / 8)
        assert close(row["backtest_wape_pct"], 100 * sum(errors) / sum(actual))
        assert close(row["backtest_naive_wape_pct"], 100 * sum(naive_errors) / sum(actual))
    by_week = demo.rows("forecast_backtest", department=department, weeks=8)
    assert all(
        close(row["forecast_usd"], forecast) for row, forecast in zip(by_week, last_forecasts, strict=True)
    )
    assert all(close(row["naive_usd"], last) for row, last in zip(by_week, naive, strict=True))
    assert [row["week"] for row in by_week] == list(range(46, 54))
    assert all(row["in_backtest"] for row in by_week)


def test_intervals_hold_the_forecast_and_widen_with_the_horizon(demo: Demo) -> None:
    rows = demo.rows("sales_forecast", weeks=26)
    departments = {row["department"] for row in rows}
    assert len(rows) == 26 * len(departments)
    assert "ALL DEPARTMENTS" not in departments
    for row in rows:
        bounds = [
            row[key]
            for key in ("lower_95_usd", "lower_80_usd", "forecast_usd", "upper_80_usd", "upper_95_usd")
        ]
        assert bounds == sorted(bounds)
        assert bounds[0] >= 0
    meat = [row for row in rows if row["department"] == "MEAT"]
    widths = [row["upper_95_usd"] / row["forecast_usd"] for row in meat]
    assert widths == sorted(widths)
    assert widths[-1] > widths[0]
    assert [row["week_start"] for row in meat[:2]] == ["2018-01-01", "2018-01-08"]


def test_the_forecast_beats_the_naive_one_taken_together_and_says_where_it_does_not(demo: Demo) -> None:
    [pooled] = demo.rows("forecast_accuracy", scope="pooled")
    departments = demo.rows("forecast_accuracy", scope="department")
    assert pooled["wape_pct"] < pooled["naive_wape_pct"]
    assert pooled["beats_naive"]
    assert sum(row["beats_naive"] for row in departments) > len(departments) / 2
    # Pooled figures are those of the departments added up, so no bad department is left out.
    assert abs(pooled["mae_usd"] * len(departments) - sum(row["mae_usd"] for row in departments)) < 0.5
    assert all(row["beats_naive"] == (row["mae_usd"] < row["naive_mae_usd"]) for row in departments)
    assert all((row["wape_pct"] is None) == (row["mean_sales_usd"] == 0) for row in departments)


def forecast_tables(raw: duckdb.DuckDBPyConnection, change: str) -> tuple[list[Any], list[Any]]:
    """Parameters, and forecasts up to week 46, of the catalogue's own models on transactions with sales changed by SQL."""
    connection = duckdb.connect()
    try:
        sales = raw.sql(f"select * replace ({change} as sales_value) from transactions").to_arrow_table()
        connection.register("transactions", sales)
        connection.register("products", raw.sql("from products").to_arrow_table())
        for name in FORECAST_MODELS:
            connection.execute(
                f"create table {name} as {(MODELS / f'{name}.sql').read_text(encoding='utf-8')}"
            )
        parameters = connection.execute("from forecast_parameters order by department").fetchall()
        steps = "select department, week, round(forecast_usd, 4) from forecast_steps where week <= 46 order by 1, 2"
        return parameters, connection.execute(steps).fetchall()
    finally:
        connection.close()


def test_changing_the_backtest_weeks_changes_neither_parameters_nor_earlier_forecasts(demo: Demo) -> None:
    # Week 46 is the first week of the window: its forecast, too, is made from the weeks before it.
    before = forecast_tables(demo.raw, "sales_value")
    after = forecast_tables(
        demo.raw, "case when week >= 46 then round(sales_value * (1 + week % 3), 2) else sales_value end"
    )
    assert before == after
    earlier = forecast_tables(demo.raw, "case when week = 45 then sales_value * 3 else sales_value end")
    assert earlier != before


def test_the_models_of_the_forecast_test_are_all_that_the_forecast_reads() -> None:
    known = {path.stem for path in MODELS.glob("*.sql")}
    for name in FORECAST_MODELS:
        sql = re.sub(
            r"/\*.*?\*/|--[^\n]*", "", (MODELS / f"{name}.sql").read_text(encoding="utf-8"), flags=re.DOTALL
        )
        read = set(re.findall(r"(?:from|join)\s+([a-z_]+)", sql)) & known
        assert read <= set(FORECAST_MODELS)
