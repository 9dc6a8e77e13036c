/*---
title: Top products
titles: {pt: Produtos mais vendidos}
description: >-
  Best-selling products between two days (both included), by sales or by units, for all stores or one, for all departments
  or one. An unknown department or store gives no rows. units is empty where quantity is a volume (fuel).
ask:
  - top products
  - "top products by {sort_by}"
  - best-selling products
  - products with most sales
  - product sales ranking
  - best sellers
  - what do customers buy the most
  - o que os clientes mais compram
  - mais vendidos
  - what sells the most
  - o que mais vende
says:
  ranked_by: {sort_by: {sales: sales_usd, units: units}}
  best_by: [sales_per_unit_usd]
freshness: top_products
timeout_seconds: 5
parameters:
  from_date: {type: date, default: 2017-01-01, minimum: 2017-01-01, maximum: 2030-12-31, description: "First business day."}
  to_date: {type: date, default: 2017-12-31, minimum: 2017-01-01, maximum: 2030-12-31, description: "Last business day."}
  department: {type: string, default: null, max_length: 64, description: "Department, exactly as in the data; empty for all.", examples: [GROCERY, PRODUCE]}
  store_id: {type: integer, default: null, minimum: 1, maximum: 2147483647, description: "Store; empty for all.", examples: [367]}
  sort_by:
    type: string
    default: sales
    choices: [sales, units]
    description: "What makes a product rank first."
    synonyms:
      sales: [by sales, by revenue, by value, por vendas, por faturamento, por valor, em valor, in value]
      units: [by units, in units, most units, by quantity, by volume, por unidades, em unidades, mais
        unidades, por quantidade, em quantidade, em volume]
  limit:
    type: integer
    default: 20
    minimum: 1
    maximum: 500
    description: "How many products."
    ask: ["# products", "# produtos", "# items", "# itens", "# best-selling products", "# sellers"]
---*/
-- Most of the time goes into grouping, so it groups as few rows as it can: whole months inside the period come from
-- product_months, the days before and after them from product_days; one store's lines lie together in sales_lines. Names
-- are looked up for the products that made it only.
with lines as (
    select product_id, units, sales_usd
    from product_months
    where
        $store_id::integer is null
        and month_start >= date_trunc('month', $from_date::date - 1) + interval 1 month
        and month_start < date_trunc('month', $to_date::date + 1)
        and ($department::varchar is null or department = $department::varchar)
    union all
    select product_id, units, sales_usd
    from product_days
    where
        $store_id::integer is null
        and business_date between $from_date::date and $to_date::date
        and (
            business_date < date_trunc('month', $from_date::date - 1) + interval 1 month
            or business_date >= date_trunc('month', $to_date::date + 1)
        )
        and ($department::varchar is null or department = $department::varchar)
    union all
    select product_id, units, sales_usd
    from sales_lines
    where
        store_id = $store_id::integer
        and business_date between $from_date::date and $to_date::date
        and ($department::varchar is null or department = $department::varchar)
),

totals as (
    select
        product_id,
        sum(sales_usd)::double as sales_usd,
        sum(units)::bigint as units
    from lines
    group by product_id
),

top as (
    select product_id, sales_usd, units, case $sort_by::varchar when 'units' then units else sales_usd end as sort_value
    from totals
    order by sort_value desc nulls last, product_id
    limit $limit::integer
)

select
    (row_number() over (order by t.sort_value desc nulls last, t.product_id))::integer as rank,
    t.product_id,
    coalesce(p.product_type, 'UNKNOWN') as product_type,
    coalesce(p.product_category, 'UNKNOWN') as product_category,
    coalesce(p.department, 'UNKNOWN') as department,
    p.brand,
    p.package_size,
    p.manufacturer_id,
    t.sales_usd,
    t.units,
    round(t.sales_usd / nullif(t.units, 0), 2) as sales_per_unit_usd
from top as t
left join products as p on t.product_id = p.product_id
order by rank
