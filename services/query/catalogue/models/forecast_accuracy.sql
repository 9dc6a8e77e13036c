/*---
description: >-
  Back-test over the last eight full weeks, one week ahead: error of the forecast and of the naive last-value forecast
  per department, for 'ALL DEPARTMENTS' as one series, and pooled over the departments.
---*/
-- WAPE: sum of absolute errors as a percentage of the sum of sales (NULL where nothing was sold in the eight weeks).
-- pooled sums errors and sales over all departments; it says how good department forecasts are taken together.
with errors as (
    select
        department,
        week_start,
        sales_usd,
        abs(sales_usd - forecast_usd) as error_usd,
        abs(sales_usd - naive_usd) as naive_error_usd,
        sales_usd between lower_80_usd and upper_80_usd as in_80,
        sales_usd between lower_95_usd and upper_95_usd as in_95
    from forecast_steps
    where in_backtest
),

scoped as (
    select case when department = 'ALL DEPARTMENTS' then 'total' else 'department' end as scope, *
    from errors
    union all
    select 'pooled' as scope, * replace ('POOLED DEPARTMENTS' as department)
    from errors
    where department <> 'ALL DEPARTMENTS'
)

select
    scope,
    department,
    min(week_start) as from_week_start,
    max(week_start) as to_week_start,
    count(distinct week_start)::integer as weeks,
    1 as horizon_weeks,
    round(avg(sales_usd), 2) as mean_sales_usd,
    round(avg(error_usd), 2) as mae_usd,
    round(avg(naive_error_usd), 2) as naive_mae_usd,
    round(100 * sum(error_usd) / nullif(sum(sales_usd), 0), 2) as wape_pct,
    round(100 * sum(naive_error_usd) / nullif(sum(sales_usd), 0), 2) as naive_wape_pct,
    -- Whole cents decide: smaller differences are no difference.
    round(avg(error_usd), 2) < round(avg(naive_error_usd), 2) as beats_naive,
    round(100 * avg(in_80::integer), 1) as coverage_80_pct,
    round(100 * avg(in_95::integer), 1) as coverage_95_pct
from scoped
group by scope, department
order by scope, department
