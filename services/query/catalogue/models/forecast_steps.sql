/*---
description: >-
  Per department and week, the forecast made one week before (from earlier weeks only) with its 80 % and 95 % interval,
  beside what was sold and the naive forecast (the week before's sales). in_backtest marks the last eight full weeks.
---*/
-- Rolling origin, horizon one week: for every week the level holds the weeks before it and nothing later, and so does the
-- error spread behind the interval (root mean square of the one-step errors before that week, calendar-adjusted).
-- Parameters come from the weeks before the back-test window and stay fixed through it.
with recursive weeks as (
    select
        w.department,
        w.week_index,
        p.alpha,
        1 + p.month_start_effect * w.month_start_share as factor,
        w.sales_usd::double as sales_usd
    from department_weeks as w
    inner join forecast_parameters as p on w.department = p.department
),

path as (
    select
        department,
        4 as week_index,
        avg(sales_usd / factor) as level,
        null::double as level_before,
        0.0::double as squares_before,
        0.0::double as squares
    from weeks
    where week_index <= 4
    group by department

    union all

    select
        p.department,
        w.week_index,
        p.level + w.alpha * (w.sales_usd / w.factor - p.level),
        p.level,
        p.squares,
        p.squares + (w.sales_usd / w.factor - p.level) ** 2
    from path as p
    inner join weeks as w on p.department = w.department and p.week_index + 1 = w.week_index
),

steps as (
    select
        w.department,
        w.week_index,
        w.sales_usd,
        p.level as level_after,
        p.level_before * w.factor as forecast_usd,
        w.factor * sqrt(p.squares_before / nullif(w.week_index - 5, 0)) as spread_usd,
        sqrt(p.squares / (w.week_index - 4)) as spread_after,
        lag(w.sales_usd) over (partition by w.department order by w.week_index) as naive_usd
    from weeks as w
    left join path as p on w.department = p.department and w.week_index = p.week_index and p.level_before is not null
)

select
    s.department,
    d.week,
    d.week_start,
    s.week_index,
    d.in_backtest,
    s.sales_usd,
    s.forecast_usd,
    s.naive_usd,
    -- 1.2816 and 1.9600: the normal distribution's 90 % and 97.5 % points. Sales are never below zero.
    greatest(s.forecast_usd - 1.2816 * s.spread_usd, 0) as lower_80_usd,
    s.forecast_usd + 1.2816 * s.spread_usd as upper_80_usd,
    greatest(s.forecast_usd - 1.9600 * s.spread_usd, 0) as lower_95_usd,
    s.forecast_usd + 1.9600 * s.spread_usd as upper_95_usd,
    s.level_after,
    s.spread_after
from steps as s
inner join department_weeks as d on s.department = d.department and s.week_index = d.week_index
where s.forecast_usd is not null
order by s.department, s.week_index
