/*---
description: >-
  One row per household and week (Monday to Sunday) in which it bought anywhere: baskets, sales, whether the week holds
  the household's first basket, and the days between the week's first basket and the one before it (NULL if none).
---*/
select
    date_trunc('week', business_date)::date as week_start,
    household_id,
    count(*)::smallint as baskets,
    sum(sales_usd)::decimal(12, 2) as sales_usd,
    bool_or(days_since_previous is null) as is_new,
    -- The first basket of the week has the longest time since the one before it: the others follow within the week.
    max(days_since_previous) as days_away
from baskets
group by 1, 2
order by 1, 2
