/*---
description: >-
  Sales forecast per department (and 'ALL DEPARTMENTS') for the 26 weeks after the last full week, with 80 % and 95 %
  intervals that widen with the horizon.
---*/
-- The spread h weeks ahead is spread(1) * sqrt(1 + (h - 1) * alpha^2): simple exponential smoothing's forecast variance
-- (Hyndman & Athanasopoulos, section 8.7), times the calendar factor of the week. Errors are taken as normal and alike over
-- the year: holiday weeks are wider than that. The series 'ALL DEPARTMENTS' is forecast by itself: its value is not the sum
-- of the departments' forecasts, and its interval is narrower than theirs added up.
with state as (
    select
        s.department,
        s.week,
        s.level_after,
        s.spread_after,
        p.alpha,
        p.month_start_effect
    from forecast_steps as s
    inner join forecast_parameters as p on s.department = p.department
    qualify row_number() over (partition by s.department order by s.week desc) = 1
),

future as (
    select
        s.department,
        w.week,
        w.week_start,
        w.week - s.week as horizon_weeks,
        s.alpha,
        s.month_start_effect,
        s.level_after * (1 + s.month_start_effect * w.month_start_days / 7.0) as forecast_usd,
        s.spread_after * (1 + s.month_start_effect * w.month_start_days / 7.0)
        * sqrt(1 + (w.week - s.week - 1) * s.alpha * s.alpha) as spread_usd
    from state as s
    inner join calendar_weeks as w on w.week between s.week + 1 and s.week + 26
)

select
    f.department,
    f.week,
    f.week_start,
    f.horizon_weeks::integer as horizon_weeks,
    round(f.forecast_usd, 2) as forecast_usd,
    round(greatest(f.forecast_usd - 1.2816 * f.spread_usd, 0), 2) as lower_80_usd,
    round(f.forecast_usd + 1.2816 * f.spread_usd, 2) as upper_80_usd,
    round(greatest(f.forecast_usd - 1.9600 * f.spread_usd, 0), 2) as lower_95_usd,
    round(f.forecast_usd + 1.9600 * f.spread_usd, 2) as upper_95_usd,
    f.alpha,
    f.month_start_effect,
    (
        select count(*) filter (where d.sales_usd > 0)
        from department_weeks as d
        where d.department = f.department
    )::integer as weeks_with_sales
from future as f
order by f.department, f.week
