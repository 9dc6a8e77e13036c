/*---
description: >-
  One row per supplier (manufacturer_id) and department over the whole data: products sold, households reached, stores.
---*/
select
    p.manufacturer_id::integer as manufacturer_id,
    s.department,
    count(distinct s.product_id)::integer as products_sold,
    count(distinct s.household_id)::integer as households,
    count(distinct s.store_id)::integer as stores
from sales_lines as s
inner join products as p on s.product_id = p.product_id
group by grouping sets ((p.manufacturer_id, s.department), (p.manufacturer_id))
order by 1, 2 nulls first
