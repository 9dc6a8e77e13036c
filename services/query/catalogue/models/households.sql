/*---
description: >-
  One row per household that ever bought: first and last business day, baskets, sales, and demographics ('UNKNOWN' for
  the two thirds of households that gave none).
---*/
select
    b.household_id,
    min(b.business_date) as first_date,
    max(b.business_date) as last_date,
    count(*)::integer as baskets,
    sum(b.sales_usd)::decimal(12, 2) as sales_usd,
    coalesce(any_value(d.age), 'UNKNOWN') as age,
    coalesce(any_value(d.income), 'UNKNOWN') as income,
    coalesce(any_value(d.home_ownership), 'UNKNOWN') as home_ownership,
    coalesce(any_value(d.marital_status), 'UNKNOWN') as marital_status,
    coalesce(any_value(d.household_size), 'UNKNOWN') as household_size,
    coalesce(any_value(d.household_comp), 'UNKNOWN') as household_comp,
    coalesce(any_value(d.kids_count), 'UNKNOWN') as kids_count
from baskets as b
left join demographics as d on b.household_id = d.household_id
group by b.household_id
order by b.household_id
