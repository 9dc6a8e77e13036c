/*---
title: Store ranking
titles: {pt: Ranking das lojas}
description: >-
  Stores between two days (both included) by sales, baskets, sales per basket, units or households, for all departments or
  one. Stores below
  min_baskets are left out (a handful of baskets says little about a store); share_pct is of all stores' sales.
ask:
  - store ranking
  - top stores
  - stores by sales
  - "stores by {sort_by}"
  - sales by store
  - which store sold the most
  - compare stores
  - store performance
  - vendas por loja
  - best store
says:
  ranked_by:
    sort_by: {sales: sales_usd, baskets: baskets, sales_per_basket: sales_per_basket_usd, units: units, households: households}
  best_by: [share_pct, discount_pct]
freshness: reports
timeout_seconds: 5
parameters:
  from_date: {type: date, default: 2017-12-04, minimum: 2017-01-01, maximum: 2030-12-31, description: "First business day."}
  to_date: {type: date, default: 2017-12-31, minimum: 2017-01-01, maximum: 2030-12-31, description: "Last business day."}
  department: {type: string, default: null, max_length: 64, description: "Department, exactly as in the data; empty for all.", examples: [GROCERY]}
  sort_by:
    type: string
    default: sales
    choices: [sales, baskets, sales_per_basket, units, households]
    description: "What makes a store rank first."
    synonyms:
      sales: [by sales, by revenue, por vendas, por faturamento]
      baskets: [by baskets, most baskets, number of baskets, most visits, by visits, most transactions, by
        transactions, mais cestas, número de cestas, por número de cestas, mais compras, por visitas, mais visitas,
        por transações, mais transações, mais visitadas, most visited, mais tickets, by number of baskets, por cestas]
      sales_per_basket: [sales per basket, average basket, average ticket, basket size, basket value, ticket médio,
        tíquete médio, cesta média, vendas por cesta, spend per basket, gasto por cesta, per basket, por cesta, gasta
        mais por cesta, valor da cesta, valor por cesta]
      units: [by units, units sold, number of units, most units, por unidades, número de unidades, mais unidades, em
        unidades, in units, by quantity, por quantidade]
      households: [by customers, number of customers, by households, number of households, por clientes, número de
        clientes, quantidade de clientes]
  min_baskets: {type: integer, default: 1, minimum: 1, maximum: 1000000000, description: "Fewest baskets of a listed store."}
  limit:
    type: integer
    default: 50
    minimum: 1
    maximum: 1000
    description: "How many stores."
    ask: ["# stores", "# lojas", "# filiais"]
---*/
with visits as (
    select store_id, household_id, units, sales_usd, list_usd
    from baskets
    where $department::varchar is null and business_date between $from_date::date and $to_date::date
    union all
    select store_id, household_id, units, sales_usd, list_usd
    from basket_departments
    where department = $department::varchar and business_date between $from_date::date and $to_date::date
),

by_household as (
    select
        store_id,
        household_id,
        count(*) as baskets,
        sum(units) as units,
        sum(sales_usd) as sales_usd,
        sum(list_usd) as list_usd
    from visits
    group by store_id, household_id
),

by_store as (
    select
        store_id,
        sum(baskets)::bigint as baskets,
        count(*) as households,
        sum(units)::bigint as units,
        sum(sales_usd) as sales_usd,
        sum(list_usd) as list_usd,
        sum(sum(sales_usd)) over () as all_sales_usd
    from by_household
    group by store_id
),

ranked as (
    select
        *,
        row_number() over (
            order by
                case $sort_by::varchar
                    when 'baskets' then baskets::double
                    when 'sales_per_basket' then sales_usd::double / baskets
                    when 'units' then units::double
                    when 'households' then households::double
                    else sales_usd::double
                end desc,
                store_id
        ) as rank
    from by_store
    where baskets >= $min_baskets::integer
)

select
    rank::integer as rank,
    store_id,
    sales_usd::double as sales_usd,
    round(100 * sales_usd::double / nullif(all_sales_usd, 0)::double, 2) as share_pct,
    baskets,
    households,
    units,
    round(sales_usd::double / baskets, 2) as sales_per_basket_usd,
    round(100 * (list_usd - sales_usd)::double / nullif(list_usd, 0)::double, 2) as discount_pct
from ranked
where rank <= $limit::integer
order by rank
