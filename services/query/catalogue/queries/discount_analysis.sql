/*---
title: Discount analysis
titles: {pt: Análise de descontos}
description: >-
  List value, the store's discounts (loyalty price and coupon match) and sales between two days (both included), per
  department or product category, deepest discount first (or the largest in dollars, with sort_by). An unknown department gives no rows.
ask:
  - discounts
  - total discount
  - discount by department
  - discount by category
  - discount analysis
  - how much discount did we give
  - quanto demos de desconto
  - deepest discounts
  - biggest discounts
  - list value and discounts
  - loyalty discounts
  - discount rate
  - discounts in dollars
  - descontos em dólares
says:
  ranked_by: {sort_by: {rate: discount_pct, discount: discount_usd}}
  best_by: [sales_usd, list_usd, units]
freshness: reports
timeout_seconds: 5
parameters:
  from_date: {type: date, default: 2017-12-04, minimum: 2017-01-01, maximum: 2030-12-31, description: "First business day."}
  to_date: {type: date, default: 2017-12-31, minimum: 2017-01-01, maximum: 2030-12-31, description: "Last business day."}
  department: {type: string, default: null, max_length: 64, description: "Department, exactly as in the data; empty for all.", examples: [GROCERY]}
  level:
    type: string
    default: department
    choices: [department, category]
    description: "One row per department, or per product category."
    synonyms:
      category: [by category, per category, categories, category, product category, por categoria, categorias,
        categoria, cada categoria]
      department: [by department, per department, por departamento, departments, departamentos]
  sort_by:
    type: string
    default: rate
    choices: [rate, discount]
    description: "What makes a row come first: the discount as a part of list value, or in dollars."
    synonyms:
      rate: [by rate, por taxa]
      discount: [in dollars, in value, by value, in absolute terms, em dólares, em valor, por valor, em valores absolutos]
  min_sales_usd: {type: number, default: 100, minimum: 0, maximum: 1000000000, description: "Leave out rows below these sales."}
  limit:
    type: integer
    default: 100
    minimum: 1
    maximum: 1000
    description: "How many rows."
    ask: ["# categories", "# categorias", "# departments", "# departamentos"]
---*/
with totals as (
    select
        department,
        case when $level::varchar = 'category' then product_category end as product_category,
        sum(list_usd) as list_usd,
        sum(sales_usd) as sales_usd,
        sum(units) as units,
        sum(line_count) as line_count
    from category_days
    where
        business_date between $from_date::date and $to_date::date
        and ($department::varchar is null or department = $department::varchar)
    group by 1, 2
)

select
    department,
    product_category,
    list_usd::double as list_usd,
    (list_usd - sales_usd)::double as discount_usd,
    round(100 * (list_usd - sales_usd)::double / nullif(list_usd, 0)::double, 2) as discount_pct,
    sales_usd::double as sales_usd,
    units::bigint as units,
    line_count::bigint as line_count,
    round(sales_usd::double / nullif(units, 0), 2) as sales_per_unit_usd
from totals
where sales_usd >= $min_sales_usd::double
order by
    case when $sort_by::varchar = 'discount' then discount_usd else discount_pct end desc nulls last,
    sales_usd desc,
    department,
    product_category nulls first
limit $limit::integer
