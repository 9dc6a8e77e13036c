/*---
description: >-
  Sales per department and full week, weeks without a sale as zero, numbered from the first full week (week_index 1);
  'ALL DEPARTMENTS' is their sum. What the forecast learns from.
---*/
-- Weeks that the data covers only in part (the one-day first week; a last week still running) are left out: half a week's
-- sales would look like a collapse. in_backtest marks the last eight full weeks, which no parameter may be chosen on.
with weeks as (
    select
        week,
        week_start,
        month_start_days / 7.0 as month_start_share,
        row_number() over (order by week) as week_index,
        row_number() over (order by week desc) <= 8 as in_backtest
    from calendar_weeks
    where full_week
),

departments as (
    select distinct department from basket_departments
    union all
    select 'ALL DEPARTMENTS'
),

sales as (
    select
        coalesce(b.department, 'ALL DEPARTMENTS') as department,
        c.week,
        sum(b.sales_usd) as sales_usd
    from basket_departments as b
    inner join calendar as c on b.business_date = c.business_date
    group by grouping sets ((b.department, c.week), (c.week))
)

select
    d.department,
    w.week,
    w.week_start,
    w.week_index::integer as week_index,
    w.in_backtest,
    w.month_start_share::double as month_start_share,
    coalesce(s.sales_usd, 0)::decimal(14, 2) as sales_usd
from departments as d
cross join weeks as w
left join sales as s on d.department = s.department and w.week = s.week
order by d.department, w.week
