/*---
title: New and returning households
titles: {pt: Clientes novos e recorrentes}
description: >-
  Households per week (Monday to Sunday, weeks that touch the given days): new (first basket in the data), active (bought
  within inactive_days before), reactivated (bought before, but longer ago). The data starts on its first day, so early
  weeks count regular customers as new: history_days says how many days of data there were before the week. With store_id:
  households seen in that store, new or returning to the chain.
ask:
  - new and returning customers
  - new customers
  - returning customers
  - how many new customers
  - new versus existing customers
  - new customers per week
  - customer retention
  - customers who came back
  - reactivated customers
says:
  best_by: [new_households, reactivated_households, active_households, households, sales_usd]
freshness: reports
timeout_seconds: 5
parameters:
  from_date: {type: date, default: 2017-03-06, minimum: 2017-01-01, maximum: 2030-12-31, description: "A day of the first week."}
  to_date: {type: date, default: 2017-12-31, minimum: 2017-01-01, maximum: 2030-12-31, description: "A day of the last week."}
  store_id: {type: integer, default: null, minimum: 1, maximum: 2147483647, description: "Store; empty for all.", examples: [367]}
  inactive_days:
    type: integer
    default: 28
    minimum: 7
    maximum: 364
    description: "Days without a basket after which a household counts as reactivated."
    ask: ["inactive for # days", "inactive # days", "# inactive days", "after # days", "# days without", "# dias sem",
      "inativos há # dias", "após # dias", "depois de # dias", "# days away", "# days of inactivity", "# dias de
      inatividade"]
---*/
with by_household as (
    select week_start, is_new, days_away, sales_usd
    from household_weeks
    where
        $store_id::integer is null
        and week_start between date_trunc('week', $from_date::date) and $to_date::date
    union all
    select
        date_trunc('week', business_date)::date as week_start,
        bool_or(days_since_previous is null) as is_new,
        max(days_since_previous) as days_away,
        sum(sales_usd) as sales_usd
    from baskets
    where
        store_id = $store_id::integer
        and business_date between date_trunc('week', $from_date::date) and date_trunc('week', $to_date::date) + interval 6 day
    group by 1, household_id
),

by_week as (
    select
        week_start,
        count(*) as households,
        count(*) filter (where is_new) as new_households,
        count(*) filter (where not is_new and days_away <= $inactive_days::integer) as active_households,
        count(*) filter (where not is_new and days_away > $inactive_days::integer) as reactivated_households,
        sum(sales_usd) as sales_usd,
        coalesce(sum(sales_usd) filter (where is_new), 0) as new_sales_usd
    from by_household
    group by week_start
)

select
    c.week,
    b.week_start,
    c.full_week,
    greatest(datediff('day', (select min(business_date) from calendar where has_data), b.week_start), 0)::integer as history_days,
    b.households,
    b.new_households,
    b.active_households,
    b.reactivated_households,
    round(100.0 * b.new_households / b.households, 2) as new_pct,
    b.sales_usd::double as sales_usd,
    b.new_sales_usd::double as new_sales_usd
from by_week as b
inner join calendar_weeks as c on b.week_start = c.week_start
order by c.week
