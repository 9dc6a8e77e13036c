/*---
title: Sales by week
titles: {pt: Vendas por semana}
description: >-
  Sales, baskets, households and units per week (Monday to Sunday), for weeks that touch the given days, each week counted
  whole. full_week is false where the data covers part of the week only; trading_days counts days on which any store sold.
  Weeks without a sale of the chosen store or department are zero; an unknown store or department gives no rows.
ask:
  - sales by week
  - sales week by week
  - weekly sales
  - sales trend
  - sales over time
  - evolution of sales
  - sales history
  - sales curve over the year
  - baskets per week
  - customers per week
  - units by week
  - vendas por semana
  - evolução das vendas
says:
  best_by: [sales_usd, households, baskets, units, sales_per_basket_usd, discount_pct]
freshness: reports
timeout_seconds: 5
parameters:
  from_date: {type: date, default: 2017-01-01, minimum: 2017-01-01, maximum: 2030-12-31, description: "A day of the first week."}
  to_date: {type: date, default: 2017-12-31, minimum: 2017-01-01, maximum: 2030-12-31, description: "A day of the last week."}
  department: {type: string, default: null, max_length: 64, description: "Department, exactly as in the data; empty for all.", examples: [GROCERY]}
  store_id: {type: integer, default: null, minimum: 1, maximum: 2147483647, description: "Store; empty for all.", examples: [367]}
---*/
with by_week as (
    select week_start, households, baskets, units, sales_usd, list_usd
    from week_totals
    where department is not distinct from $department::varchar and store_id is not distinct from $store_id::integer
)

select
    w.week,
    w.week_start,
    w.week_end,
    w.full_week,
    w.trading_days,
    coalesce(s.sales_usd, 0)::double as sales_usd,
    coalesce(s.baskets, 0)::bigint as baskets,
    coalesce(s.households, 0)::bigint as households,
    coalesce(s.units, 0)::bigint as units,
    round(s.sales_usd::double / s.baskets, 2) as sales_per_basket_usd,
    round(coalesce(s.sales_usd, 0)::double / nullif(w.trading_days, 0), 2) as sales_per_trading_day_usd,
    round(100 * (s.list_usd - s.sales_usd)::double / nullif(s.list_usd, 0)::double, 2) as discount_pct
from calendar_weeks as w
left join by_week as s on w.week_start = s.week_start
where
    w.days_with_data > 0
    and w.week_start between date_trunc('week', $from_date::date) and $to_date::date
    and exists (select 1 from by_week)
order by w.week
