/*---
title: Top products
description: >-
  Best-selling products between two days (both included), by sales or by units, for all stores or one, for all departments
  or one. An unknown department or store gives no rows. units is empty where quantity is a volume (fuel).
freshness: top_products
timeout_seconds: 5
parameters:
  from_date: {type: date, default: 2017-01-01, minimum: 2017-01-01, maximum: 2030-12-31, description: "First business day."}
  to_date: {type: date, default: 2017-12-31, minimum: 2017-01-01, maximum: 2030-12-31, description: "Last business day."}
  department: {type: string, default: null, max_length: 64, description: "Department, exactly as in the data; empty for all.", examples: [GROCERY, PRODUCE]}
  store_id: {type: integer, default: null, minimum: 1, maximum: 2147483647, description: "Store; empty for all.", examples: [367]}
  sort_by: {type: string, default: sales, choices: [sales, units], description: "What makes a product rank first."}
  limit: {type: integer, default: 20, minimum: 1, maximum: 500, description: "How many products."}
---*/
-- All stores: product_days. One store: the sales lines, which lie sorted by store. Only one branch has rows.
with lines as (
    select product_id, department, units, sales_usd, list_usd
    from product_days
    where
        $store_id::integer is null
        and business_date between $from_date::date and $to_date::date
        and ($department::varchar is null or department = $department::varchar)
    union all
    select product_id, department, units, sales_usd, list_usd
    from sales_lines
    where
        store_id = $store_id::integer
        and business_date between $from_date::date and $to_date::date
        and ($department::varchar is null or department = $department::varchar)
),

totals as (
    select
        product_id,
        any_value(department) as department,
        sum(sales_usd) as sales_usd,
        sum(list_usd) as list_usd,
        sum(units) as units
    from lines
    group by product_id
),

top as (
    select *
    from totals
    order by case when $sort_by::varchar = 'units' then units::decimal(38, 2) else sales_usd end desc nulls last, product_id
    limit $limit::integer
)

select
    (row_number() over (
        order by case when $sort_by::varchar = 'units' then t.units::decimal(38, 2) else t.sales_usd end desc nulls last, t.product_id
    ))::integer as rank,
    t.product_id,
    coalesce(p.product_type, 'UNKNOWN') as product_type,
    coalesce(p.product_category, 'UNKNOWN') as product_category,
    t.department,
    p.brand,
    p.package_size,
    p.manufacturer_id,
    t.sales_usd::double as sales_usd,
    t.units::bigint as units,
    round(100 * (t.list_usd - t.sales_usd)::double / nullif(t.list_usd, 0)::double, 2) as discount_pct
from top as t
left join products as p on t.product_id = p.product_id
order by rank
