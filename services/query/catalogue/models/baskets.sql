/*---
description: >-
  One row per basket (a visit to one store by one household), with its day, hour, lines, units, amounts and the days since
  the household's basket before (NULL for its first).
---*/
select
    basket_id,
    any_value(household_id) as household_id,
    any_value(store_id) as store_id,
    min(business_date) as business_date,
    min(local_hour) as local_hour,
    datediff(
        'day',
        lag(min(business_date)) over (
            partition by any_value(household_id) order by min(business_date), min(local_hour), basket_id
        ),
        min(business_date)
    )::smallint as days_since_previous,
    count(*)::smallint as line_count,
    coalesce(sum(units), 0)::integer as units,
    sum(sales_usd)::decimal(12, 2) as sales_usd,
    sum(list_usd)::decimal(12, 2) as list_usd,
    sum(loyalty_discount_usd)::decimal(12, 2) as loyalty_discount_usd,
    sum(coupon_match_usd)::decimal(12, 2) as coupon_match_usd,
    sum(coupon_discount_usd)::decimal(12, 2) as coupon_discount_usd
from sales_lines
group by basket_id
order by business_date, store_id, basket_id
