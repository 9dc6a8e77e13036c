/*---
description: One row per basket and department in it. Sums over it are sums over all sales lines.
---*/
-- Sorted by department and day: a query for one department reads that stretch only.
select
    department,
    min(business_date) as business_date,
    basket_id,
    any_value(household_id) as household_id,
    any_value(store_id) as store_id,
    count(*)::smallint as line_count,
    coalesce(sum(units), 0)::integer as units,
    sum(sales_usd)::decimal(12, 2) as sales_usd,
    sum(list_usd)::decimal(12, 2) as list_usd,
    sum(loyalty_discount_usd)::decimal(12, 2) as loyalty_discount_usd,
    sum(coupon_match_usd)::decimal(12, 2) as coupon_match_usd,
    sum(coupon_discount_usd)::decimal(12, 2) as coupon_discount_usd
from sales_lines
group by department, basket_id
order by department, business_date, store_id, basket_id
