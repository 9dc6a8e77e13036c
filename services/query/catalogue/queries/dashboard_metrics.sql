/*---
title: Dashboard metrics
titles: {pt: Principais indicadores}
description: >-
  Headline figures of a period beside the period of the same length just before it, one row per metric. change_pct is
  empty when the data does not cover the whole earlier period (previous_complete is false). No rows if nothing was sold in
  either period, for instance for an unknown department or store.
ask:
  - key figures
  - total sales
  - sales
  - how much did we sell
  - quanto vendemos
  - summary of the period
  - compare with the previous period
  - performance
  - overall performance
  - how are we doing
  - did we sell more than in the previous period
  - vendemos mais do que no período anterior
  - business overview
  - number of baskets
  - number of customers
  - how many customers
  - how many customers bought
  - how many baskets
  - units sold
  - sales per basket
  - average basket
  - sales per household
  - spend per basket
  - average spend per basket
  - average spend per customer
  - figures versus the previous period
  - sales growth
  - sales compared with the previous period
says:
  said: [metric, current_value, unit, change_pct]
  rows:
    metric:
      sales: [sales, sold, sell, selling, revenue, turnover, takings, vendas, vender, vendemos, vendeu, vendido, venderam,
        faturamento, faturamos, faturou, faturaram, receita]
      baskets: [baskets, transactions, visits, purchases, tickets, receipts, cestas, transações, visitas, compras, carrinhos]
      households: [customers, households, shoppers, buyers, people, clientes, domicílios, famílias, consumidores,
        compradores, pessoas]
      units: [units, units sold, units did we sell, unidades, unidades vendidas, unidades vendemos, pieces, peças, items sold]
      sales_per_basket: [sales per basket, average basket, average basket value, average ticket, average sale, basket size,
        basket value, spend per basket, average spend per basket, sales per transaction, spend per visit, vendas por cesta,
        gasto por cesta, gasto por compra, gasto médio por cesta, valor por cesta, ticket médio, tíquete médio, cesta média,
        valor da cesta, valor médio da cesta, valor médio da compra]
      lines_per_basket: [lines per basket, items per basket, itens por cesta, linhas por cesta]
      sales_per_household: [sales per household, sales per customer, spend per customer, spend per household, spending per
          customer, average spend per customer, average customer spend, gasto por cliente, gasto médio por cliente, vendas por
          cliente, valor por cliente, compra média por cliente]
      discount: [discount, discounts, descontos]
      discount_rate: [discount rate, taxa de desconto, percentual de desconto]
freshness: dashboard_metrics
timeout_seconds: 5
parameters:
  from_date: {type: date, default: 2017-12-04, minimum: 2017-01-01, maximum: 2030-12-31, description: "First business day of the period."}
  to_date: {type: date, default: 2017-12-31, minimum: 2017-01-01, maximum: 2030-12-31, description: "Last business day of the period."}
  department: {type: string, default: null, max_length: 64, description: "Department, exactly as in the data; empty for all.", examples: [GROCERY]}
  store_id: {type: integer, default: null, minimum: 1, maximum: 2147483647, description: "Store; empty for all.", examples: [367]}
---*/
with bounds as (
    select
        $from_date::date as from_date,
        $to_date::date as to_date,
        ($from_date::date - ($to_date::date - $from_date::date + 1)::integer)::date as previous_from_date,
        ($from_date::date - 1)::date as previous_to_date
),

-- One row per basket in either branch; only one branch has rows.
visits as (
    select household_id, business_date >= $from_date::date as is_current, line_count, units, sales_usd, list_usd
    from baskets
    where
        $department::varchar is null
        and business_date between $from_date::date - ($to_date::date - $from_date::date + 1)::integer and $to_date::date
        and ($store_id::integer is null or store_id = $store_id::integer)
    union all
    select household_id, business_date >= $from_date::date, line_count, units, sales_usd, list_usd
    from basket_departments
    where
        department = $department::varchar
        and business_date between $from_date::date - ($to_date::date - $from_date::date + 1)::integer and $to_date::date
        and ($store_id::integer is null or store_id = $store_id::integer)
),

by_household as (
    select
        household_id,
        is_current,
        count(*) as baskets,
        sum(line_count) as line_count,
        sum(units) as units,
        sum(sales_usd) as sales_usd,
        sum(list_usd) as list_usd
    from visits
    group by household_id, is_current
),

totals as (
    select
        is_current,
        sum(sales_usd)::double as sales_usd,
        sum(baskets)::double as baskets,
        count(*)::double as households,
        sum(line_count)::double as line_count,
        sum(units)::double as units,
        sum(list_usd - sales_usd)::double as discount_usd,
        sum(list_usd)::double as list_usd
    from by_household
    group by is_current
),

metrics as (
    select is_current, unnest([
        {'position': 1, 'metric': 'sales', 'unit': 'USD', 'amount': sales_usd},
        {'position': 2, 'metric': 'baskets', 'unit': 'baskets', 'amount': baskets},
        {'position': 3, 'metric': 'households', 'unit': 'households', 'amount': households},
        {'position': 4, 'metric': 'units', 'unit': 'units', 'amount': units},
        {'position': 5, 'metric': 'sales_per_basket', 'unit': 'USD per basket', 'amount': sales_usd / baskets},
        {'position': 6, 'metric': 'lines_per_basket', 'unit': 'lines per basket', 'amount': line_count / baskets},
        {'position': 7, 'metric': 'sales_per_household', 'unit': 'USD per household', 'amount': sales_usd / households},
        {'position': 8, 'metric': 'discount', 'unit': 'USD', 'amount': discount_usd},
        {'position': 9, 'metric': 'discount_rate', 'unit': '% of list value', 'amount': 100 * discount_usd / nullif(list_usd, 0)}
    ], recursive := true)
    from totals
),

compared as (
    select
        position,
        metric,
        unit,
        round(max(amount) filter (where is_current), 2) as current_value,
        round(max(amount) filter (where not is_current), 2) as previous_value
    from metrics
    group by position, metric, unit
),

-- Additive figures of a period without a sale are zero; ratios are not known.
filled as (
    select
        position,
        metric,
        unit,
        case when unit like '% per %' or unit like '\%%' escape '\' then current_value else coalesce(current_value, 0) end
            as current_value,
        case when unit like '% per %' or unit like '\%%' escape '\' then previous_value else coalesce(previous_value, 0) end
            as previous_value
    from compared
)

select
    f.metric,
    f.unit,
    f.current_value,
    f.previous_value,
    round(f.current_value - f.previous_value, 2) as change_value,
    case
        when b.previous_from_date >= (select min(business_date) from calendar where has_data)
            then round(100 * (f.current_value - f.previous_value) / nullif(f.previous_value, 0), 2)
    end as change_pct,
    b.from_date,
    b.to_date,
    b.previous_from_date,
    b.previous_to_date,
    b.previous_from_date >= (select min(business_date) from calendar where has_data)
    and b.previous_to_date <= (select max(business_date) from calendar where has_data) as previous_complete
from filled as f
cross join bounds as b
order by f.position
