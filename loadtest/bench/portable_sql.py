"""The questions in SQL that DuckDB, DataFusion and SQLite all take, over the same models that the service's queries read.

They follow the service's named queries (services/query/catalogue/queries) and return the columns that are compared; what is
arithmetic on dates there is given as a parameter here. Imports nothing of the service: the brief's design uses it too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

KINDS = ("top_products", "store_ranking", "sales_by_week", "dashboard_metrics", "suppliers")
DATES = (
    "from_date",
    "to_date",
    "previous_from_date",
    "week_from",
    # Whole months within the period, and the days before and after them.
    "first_month",
    "after_months",
    "head_to_date",
    "tail_from_date",
)

_METRICS = (
    ("sales", "sales_usd"),
    ("baskets", "baskets"),
    ("households", "households"),
    ("units", "units"),
    ("sales_per_basket", "sales_usd / baskets"),
    ("lines_per_basket", "line_count / baskets"),
    ("sales_per_household", "sales_usd / households"),
    ("discount", "list_usd - sales_usd"),
    ("discount_rate", "100 * (list_usd - sales_usd) / list_usd"),
)


@dataclass(frozen=True)
class Dialect:
    """How a system writes a parameter (by name) and a sum of money as a floating-point number."""

    literal: Callable[[str], str]
    money: Callable[[str], str] = "cast(sum({}) as double)".format


def sqlite_money(column: str) -> str:
    """SQLite has no decimals: sums of binary fractions are rounded, so that equal amounts are equal."""
    return f"round(sum({column}), 2)"


def portable_sql(kind: str, dialect: Dialect, *, department: bool) -> str:
    """The SELECT of a kind of question, for one department (parameter `department`) or for all."""
    return " ".join(_SELECTS[kind](dialect.literal, dialect.money, department).split())


_Text = Callable[[str], str]


def _of(department: bool, value: _Text) -> str:
    return f"and department = {value('department')}" if department else ""


def _top_products(value: _Text, money: _Text, department: bool) -> str:
    mine = _of(department, value)
    return f"""
with sold as (
    select product_id, units, sales_usd from product_months
    where month_start >= {value("first_month")} and month_start < {value("after_months")} {mine}
    union all
    select product_id, units, sales_usd from product_days
    where business_date between {value("from_date")} and {value("head_to_date")} {mine}
    union all
    select product_id, units, sales_usd from product_days
    where business_date between {value("tail_from_date")} and {value("to_date")} {mine}
),
totals as (select product_id, {money("sales_usd")} as sales_usd, sum(units) as units from sold group by product_id),
top as (select * from totals order by sales_usd desc nulls last, product_id limit {value("limit")})
select
    row_number() over (order by t.sales_usd desc nulls last, t.product_id) as rank, t.product_id,
    coalesce(p.product_type, 'UNKNOWN') as product_type, coalesce(p.department, 'UNKNOWN') as department, t.sales_usd,
    t.units
from top as t left join products as p on t.product_id = p.product_id
order by rank"""


def _store_ranking(value: _Text, money: _Text, department: bool) -> str:
    return f"""
with by_household as (
    select store_id, household_id, count(*) as baskets, sum(units) as units, sum(sales_usd) as sales_usd
    from {"basket_departments" if department else "baskets"}
    where business_date between {value("from_date")} and {value("to_date")} {_of(department, value)}
    group by store_id, household_id
),
by_store as (
    select store_id, sum(baskets) as baskets, count(*) as households, sum(units) as units, {money("sales_usd")} as sales_usd
    from by_household group by store_id
),
ranked as (
    select
        *, sum(sales_usd) over () as all_sales_usd, row_number() over (order by sales_usd desc, store_id) as rank
    from by_store
)
select rank, store_id, sales_usd, round(100 * sales_usd / all_sales_usd, 2) as share_pct, baskets, households, units
from ranked where rank <= {value("limit")} order by rank"""


def _sales_by_week(value: _Text, money: _Text, department: bool) -> str:
    whose = f"department = {value('department')}" if department else "department is null"
    return f"""
select
    w.week, w.week_start, coalesce({money("s.sales_usd")}, 0) as sales_usd, coalesce(sum(s.baskets), 0) as baskets,
    coalesce(sum(s.households), 0) as households, coalesce(sum(s.units), 0) as units
from calendar_weeks as w
left join (select * from week_totals where store_id is null and {whose}) as s on w.week_start = s.week_start
where w.days_with_data > 0 and w.week_start between {value("week_from")} and {value("to_date")}
group by w.week, w.week_start order by w.week"""


def _dashboard_metrics(value: _Text, money: _Text, department: bool) -> str:
    amounts = "\n    union all ".join(
        f"select {position} as place, '{name}' as metric, is_current, {amount} as amount from totals"
        for position, (name, amount) in enumerate(_METRICS)
    )
    return f"""
with by_household as (
    select
        household_id, case when business_date >= {value("from_date")} then 1 else 0 end as is_current,
        count(*) as baskets, sum(line_count) as line_count, sum(units) as units, sum(sales_usd) as sales_usd,
        sum(list_usd) as list_usd
    from {"basket_departments" if department else "baskets"}
    where business_date between {value("previous_from_date")} and {value("to_date")} {_of(department, value)}
    group by 1, 2
),
totals as (
    select
        is_current, {money("sales_usd")} as sales_usd, {money("list_usd")} as list_usd, 1.0 * sum(baskets) as baskets,
        1.0 * count(*) as households, 1.0 * sum(line_count) as line_count, 1.0 * sum(units) as units
    from by_household group by is_current
),
amounts as (
    {amounts}
)
select
    metric, round(max(case when is_current = 1 then amount end), 2) as current_value,
    round(max(case when is_current = 0 then amount end), 2) as previous_value
from amounts group by place, metric order by place"""


def _suppliers(value: _Text, money: _Text, department: bool) -> str:
    profile = f"p.department = {value('department')}" if department else "p.department is null"
    now = f"case when business_date >= {value('from_date')} then sales_usd end"
    before = f"case when business_date < {value('from_date')} then sales_usd end"
    return f"""
with totals as (
    select manufacturer_id, {money(now)} as sales_usd, {money(before)} as previous_sales_usd
    from supplier_days
    where business_date between {value("previous_from_date")} and {value("to_date")} {_of(department, value)}
    group by manufacturer_id
),
ranked as (
    select
        *, sum(sales_usd) over () as all_sales_usd,
        row_number() over (order by sales_usd desc, manufacturer_id) as rank
    from totals where sales_usd is not null
)
select
    r.rank, r.manufacturer_id, r.sales_usd, round(100 * r.sales_usd / r.all_sales_usd, 2) as share_pct,
    coalesce(r.previous_sales_usd, 0) as previous_sales_usd, p.products_sold, p.households, p.stores
from ranked as r left join suppliers_profile as p on r.manufacturer_id = p.manufacturer_id and {profile}
where r.rank <= {value("limit")} order by r.rank"""


_SELECTS: dict[str, Callable[[_Text, _Text, bool], str]] = {
    "top_products": _top_products,
    "store_ranking": _store_ranking,
    "sales_by_week": _sales_by_week,
    "dashboard_metrics": _dashboard_metrics,
    "suppliers": _suppliers,
}
