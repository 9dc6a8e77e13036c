/*---
description: >-
  One row per week (Monday to Sunday), store and department, with exact counts of baskets and households. department NULL:
  all departments; store_id NULL: all stores. (Households and baskets of parts do not add up to those of the whole.)
---*/
with visits as (
    select null as department, store_id, business_date, household_id, units, sales_usd, list_usd
    from baskets
    union all
    select department, store_id, business_date, household_id, units, sales_usd, list_usd
    from basket_departments
),

by_household as (
    select
        department,
        store_id,
        date_trunc('week', business_date)::date as week_start,
        household_id,
        count(*) as baskets,
        sum(units) as units,
        sum(sales_usd) as sales_usd,
        sum(list_usd) as list_usd
    from visits
    group by all
)

select
    department,
    store_id,
    week_start,
    count(distinct household_id)::integer as households,
    sum(baskets)::integer as baskets,
    sum(units)::integer as units,
    sum(sales_usd)::decimal(12, 2) as sales_usd,
    sum(list_usd)::decimal(12, 2) as list_usd
from by_household
group by grouping sets ((department, store_id, week_start), (department, week_start))
order by department nulls first, store_id nulls first, week_start
