/*---
description: >-
  One row per product category, department and business day, over all stores: amounts before and after discounts.
---*/
select
    d.department,
    coalesce(p.product_category, 'UNKNOWN') as product_category,
    d.business_date,
    sum(d.line_count)::integer as line_count,
    sum(d.units)::integer as units,
    sum(d.sales_usd)::decimal(12, 2) as sales_usd,
    sum(d.list_usd)::decimal(12, 2) as list_usd
from product_days as d
left join products as p on d.product_id = p.product_id
group by d.department, coalesce(p.product_category, 'UNKNOWN'), d.business_date
order by 1, 2, 3
