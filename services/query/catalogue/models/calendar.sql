/*---
description: >-
  One row per local business day from the data's first day to 52 weeks after its last: week number, Monday of the week,
  whether the data covers the day, whether anything was sold on it, and whether the data covers the whole week.
---*/
-- Weeks run Monday to Sunday. The number continues the data's own count: week 1 is the week of the data's first day
-- (here 1 January 2017 alone, a Sunday), and weeks after the last day go on counting (54, 55 ...), which forecasts need.
-- full_week means that the data covers all seven days, from Monday to Sunday. A day on which the stores were closed
-- (Christmas) is covered: its week is full, with trading_days = 6.
with span as (
    select min(business_date) as first_date, max(business_date) as last_date
    from sales_lines
),

sold as (
    select distinct business_date
    from sales_lines
),

days as (
    select
        unnest(generate_series(
            date_trunc('week', first_date)::timestamp, last_date::timestamp + interval 364 day, interval 1 day
        ))::date as business_date,
        first_date,
        last_date
    from span
)

select
    d.business_date,
    date_trunc('week', d.business_date)::date as week_start,
    (datediff('day', date_trunc('week', d.first_date)::date, date_trunc('week', d.business_date)::date) // 7 + 1)::smallint
        as week,
    isodow(d.business_date)::tinyint as iso_weekday,
    dayname(d.business_date) as weekday,
    d.business_date between d.first_date and d.last_date as has_data,
    s.business_date is not null as trading_day,
    date_trunc('week', d.business_date)::date >= d.first_date
    and (date_trunc('week', d.business_date) + interval 6 day)::date <= d.last_date as full_week
from days as d
left join sold as s on d.business_date = s.business_date
order by d.business_date
