/*---
title: Department performance
titles: {pt: Desempenho dos departamentos}
description: >-
  Departments by sales (or by change, units or baskets) between two days (both included): share, change on the period of
  the same length before, part of all baskets that hold the department, discount. change_pct is empty when the data does not cover the earlier period.
ask:
  - department performance
  - sales by department
  - sales split by department
  - top departments
  - departments by sales
  - which department sells the most
  - how departments are doing
  - change of each department
  - share of each department
  - compare departments
  - departments compared with the previous period
  - growth of departments
  - vendas por departamento
says:
  ranked_by: {sort_by: {sales: sales_usd, change: change_pct, units: units, baskets: baskets}}
  best_by: [share_pct, sales_per_basket_usd, discount_pct, basket_penetration_pct]
freshness: reports
timeout_seconds: 5
parameters:
  from_date: {type: date, default: 2017-12-04, minimum: 2017-01-01, maximum: 2030-12-31, description: "First business day."}
  to_date: {type: date, default: 2017-12-31, minimum: 2017-01-01, maximum: 2030-12-31, description: "Last business day."}
  store_id: {type: integer, default: null, minimum: 1, maximum: 2147483647, description: "Store; empty for all.", examples: [367]}
  sort_by:
    type: string
    default: sales
    choices: [sales, change, units, baskets]
    description: "What makes a department rank first."
    synonyms:
      sales: []
      change: [by growth, by change, grew the most, grew most, grown the most, growing the most, fastest growing, highest growth,
        biggest growth, most growth, cresceu mais, cresceram mais, mais cresceu, mais cresceram, mais cresce, maior
        crescimento, por crescimento, por variação]
      units: [by units, most units, in units, por unidades, mais unidades, em unidades, by quantity, por quantidade]
      baskets: [by baskets, most baskets, by number of baskets, por cestas, mais cestas, por número de cestas]
  limit:
    type: integer
    default: 100
    minimum: 1
    maximum: 1000
    description: "How many departments."
    ask: ["# departments", "# departamentos", "# setores"]
---*/
with totals as (
    select
        department,
        coalesce(sum(sales_usd) filter (where business_date >= $from_date::date), 0) as sales_usd,
        coalesce(sum(sales_usd) filter (where business_date < $from_date::date), 0) as previous_sales_usd,
        sum(list_usd) filter (where business_date >= $from_date::date) as list_usd,
        coalesce(sum(units) filter (where business_date >= $from_date::date), 0) as units,
        count(*) filter (where business_date >= $from_date::date) as baskets
    from basket_departments
    where
        business_date between $from_date::date - ($to_date::date - $from_date::date + 1)::integer and $to_date::date
        and ($store_id::integer is null or store_id = $store_id::integer)
    group by department
),

visits as (
    select count(*) as baskets
    from baskets
    where
        business_date between $from_date::date and $to_date::date
        and ($store_id::integer is null or store_id = $store_id::integer)
),

measured as (
    select
        t.department,
        t.sales_usd::double as sales_usd,
        round(100 * t.sales_usd::double / nullif(sum(t.sales_usd) over (), 0)::double, 2) as share_pct,
        t.previous_sales_usd::double as previous_sales_usd,
        case
            when
                $from_date::date - ($to_date::date - $from_date::date + 1)::integer
                >= (select min(business_date) from calendar where has_data)
                then round(100 * (t.sales_usd - t.previous_sales_usd)::double / nullif(t.previous_sales_usd, 0)::double, 2)
        end as change_pct,
        t.units::bigint as units,
        t.baskets::bigint as baskets,
        round(100.0 * t.baskets / nullif(v.baskets, 0), 2) as basket_penetration_pct,
        round(t.sales_usd::double / nullif(t.baskets, 0), 2) as sales_per_basket_usd,
        round(100 * (t.list_usd - t.sales_usd)::double / nullif(t.list_usd, 0)::double, 2) as discount_pct
    from totals as t
    cross join visits as v
),

sorted as (
    select
        *,
        case $sort_by::varchar
            when 'change' then change_pct
            when 'units' then units::double
            when 'baskets' then baskets::double
            else sales_usd
        end as sort_value
    from measured
)

-- Sorted by what was asked; a department whose figure is not known comes last.
select
    (row_number() over (order by m.sort_value desc nulls last, m.department))::integer as rank,
    m.department,
    m.sales_usd,
    m.share_pct,
    m.previous_sales_usd,
    m.change_pct,
    m.units,
    m.baskets,
    m.basket_penetration_pct,
    m.sales_per_basket_usd,
    m.discount_pct
from sorted as m
order by rank
limit $limit::integer
