"""The demo's answers on baskets, promotions, customers, coupons and prices, against the raw Parquet files."""

from __future__ import annotations

from datetime import date

import duckdb
import pytest

from tests.support.demo_data import SPRING, YEAR, Demo, close, fetch, value, with_local_days


@pytest.fixture(scope="module")
def lines(demo: Demo) -> duckdb.DuckDBPyConnection:
    return with_local_days(demo)


def test_affinity_counts_baskets_that_hold_both_categories(demo: Demo, lines: duckdb.DuckDBPyConnection) -> None:
    answer = demo.rows("basket_affinity", category="BEEF", sort_by="baskets", min_baskets=50, min_lift=0, limit=3)
    kept = "category is not null and department not in ('FUEL', 'COUPON')"
    total = value(lines, f"select count(distinct basket_id) from lines where {kept}")
    for row in answer:
        baskets = "select distinct basket_id from lines where category = ? and " + kept
        both = value(lines, f"select count(*) from ({baskets} intersect {baskets})", "BEEF", row["other_category"])
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
    answer = {row["promotion_type"]: row for row in demo.rows("promotion_effect", department="SALAD BAR", min_weeks=1)}
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


def test_segments_hold_the_households_that_gave_that_answer(demo: Demo, lines: duckdb.DuckDBPyConnection) -> None:
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


def test_a_household_is_new_once_and_reactivated_after_its_pause(demo: Demo, lines: duckdb.DuckDBPyConnection) -> None:
    answer = {row["week"]: row for row in demo.rows("new_vs_returning", **YEAR, inactive_days=28)}
    days: dict[int, list[tuple[date, int]]] = {}
    for household, day, week in fetch(lines, "select distinct household_id, day, week from lines order by 1, 2"):
        days.setdefault(household, []).append((day, week))
    counts: dict[int, dict[str, int]] = {week: {"new": 0, "active": 0, "reactivated": 0} for week in range(1, 54)}
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


def test_hours_and_days_are_local_through_both_clock_changes(demo: Demo, lines: duckdb.DuckDBPyConnection) -> None:
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
