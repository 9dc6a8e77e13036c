/*---
description: One row per product and month in which it sold, over all stores. Sums of product_days, a quarter of its rows.
---*/
select
    department,
    product_id,
    date_trunc('month', business_date)::date as month_start,
    sum(line_count)::integer as line_count,
    sum(units)::integer as units,
    sum(sales_usd)::decimal(12, 2) as sales_usd,
    sum(list_usd)::decimal(12, 2) as list_usd
from product_days
group by 1, 2, 3
order by 1, 2, 3
