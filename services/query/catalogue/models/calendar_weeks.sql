/*---
description: >-
  One row per week (Monday to Sunday): number, first and last day, days the data covers, days with sales, and full_week
  (the data covers all seven days). Weeks after the data's last day are included, with days_with_data = 0.
---*/
select
    week,
    week_start,
    (week_start + interval 6 day)::date as week_end,
    (count(*) filter (where has_data))::tinyint as days_with_data,
    (count(*) filter (where trading_day))::tinyint as trading_days,
    bool_and(full_week) as full_week,
    -- Days 1 to 7 of a month in this week: sales are higher in a month's first days (see the forecast's model).
    (count(*) filter (where day(business_date) <= 7))::tinyint as month_start_days
from calendar
group by week, week_start
having count(*) = 7
order by week
