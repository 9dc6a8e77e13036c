/*---
description: >-
  One row per supplier (manufacturer_id), department and business day, over all stores. Private-label sales are apart.
  Products that are not in products have no known supplier and are left out.
---*/
select
    p.manufacturer_id::integer as manufacturer_id,
    d.department,
    d.business_date,
    sum(d.units)::integer as units,
    sum(d.sales_usd)::decimal(12, 2) as sales_usd,
    sum(d.list_usd)::decimal(12, 2) as list_usd,
    coalesce(sum(d.sales_usd) filter (where p.brand = 'Private'), 0)::decimal(12, 2) as private_label_sales_usd
from product_days as d
inner join products as p on d.product_id = p.product_id
group by p.manufacturer_id, d.department, d.business_date
order by p.manufacturer_id, d.department, d.business_date
