/*---
title: Product trend
titles: {pt: Evolução de um produto}
description: >-
  One product week by week (Monday to Sunday), weeks without a sale as zero, for all stores or one. Weeks that touch the
  given days are counted whole. An unknown product gives no rows.
ask:
  - product trend
  - sales of a product by week
  - product sales over time
  - evolution of a product
  - weekly sales of one product
  - how does a product sell
  - product history
  - "product {product_id}"
  - "sales of product {product_id} by week"
  - "trend of product {product_id}"
says:
  best_by: [sales_usd, units, discount_pct, sales_per_unit_usd]
freshness: reports
timeout_seconds: 5
parameters:
  product_id: {type: integer, default: 1082185, must_be_named: true, minimum: 1, maximum: 2147483647, description: "Product.", examples: [1082185]}
  from_date: {type: date, default: 2017-01-01, minimum: 2017-01-01, maximum: 2030-12-31, description: "A day of the first week."}
  to_date: {type: date, default: 2017-12-31, minimum: 2017-01-01, maximum: 2030-12-31, description: "A day of the last week."}
  store_id: {type: integer, default: null, minimum: 1, maximum: 2147483647, description: "Store; empty for all.", examples: [367]}
---*/
with lines as (
    select business_date, department, line_count, units, sales_usd, list_usd
    from product_days
    where $store_id::integer is null and product_id = $product_id::integer
    union all
    select business_date, department, 1, units, sales_usd, list_usd
    from sales_lines
    where store_id = $store_id::integer and product_id = $product_id::integer
),

by_week as (
    select
        date_trunc('week', business_date)::date as week_start,
        sum(line_count) as line_count,
        sum(units) as units,
        sum(sales_usd) as sales_usd,
        sum(list_usd) as list_usd
    from lines
    group by 1
)

select
    w.week,
    w.week_start,
    w.full_week,
    $product_id::integer as product_id,
    (select any_value(department) from lines) as department,
    coalesce(b.sales_usd, 0)::double as sales_usd,
    coalesce(b.units, 0)::bigint as units,
    coalesce(b.line_count, 0)::bigint as line_count,
    round(b.sales_usd::double / nullif(b.units, 0), 2) as sales_per_unit_usd,
    round(100 * (b.list_usd - b.sales_usd)::double / nullif(b.list_usd, 0)::double, 2) as discount_pct
from calendar_weeks as w
left join by_week as b on w.week_start = b.week_start
where
    w.days_with_data > 0
    and w.week_start between date_trunc('week', $from_date::date) and $to_date::date
    and exists (select 1 from lines)
order by w.week
