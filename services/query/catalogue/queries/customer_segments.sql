/*---
title: Customer segments
titles: {pt: Segmentos de clientes}
description: >-
  Households that bought between two days (both included) by one demographic attribute: sales, baskets, spend per household
  and per basket. Only a third of the households gave demographics; the others, and gaps, are the segment UNKNOWN.
ask:
  - customer segments
  - sales by customer segment
  - sales by {dimension}
  - customers by {dimension}
  - which {dimension} spends the most
  - which {dimension} buys most
  - customer profile
  - who are our customers
  - who buys from us
  - spend by customer segment
  - which customers spend the most
  - demographic profile of customers
  - which segment buys most
says:
  best_by: [sales_per_household_usd, sales_usd, share_pct, households, baskets, sales_per_basket_usd, discount_pct]
  not_best: {segment: [UNKNOWN]}
freshness: reports
timeout_seconds: 5
parameters:
  dimension:
    type: string
    default: age
    choices: [age, income, home_ownership, marital_status, household_size, household_comp, kids_count]
    description: "Attribute that makes the segments."
    synonyms:
      age: [age, age group, age groups, idade, faixa etária, faixas etárias, idades, older, younger, velhos, jovens]
      income: [income, income level, income bracket, renda, faixa de renda, faixas de renda, nível de renda, rich,
        poor, ricos, pobres, classe social]
      home_ownership: [home ownership, homeowner, homeowners, renters, renter, casa própria, tipo de moradia, moradia,
        inquilinos, proprietários, own their home, aluguel]
      marital_status: [marital status, married, single, estado civil, casados, solteiros, casado, solteiro]
      household_size: [household size, size of household, family size, tamanho da família, tamanho do domicílio,
        tamanho da casa, number of people, pessoas na casa, número de pessoas]
      household_comp: [household composition, household comp, family composition, composição familiar, composição da
        família, composição do domicílio, composição do lar, type of household, tipo de família]
      kids_count: [kids, children, number of kids, number of children, kids count, filhos, crianças, número de filhos,
        quantidade de filhos, with kids, com filhos]
  from_date: {type: date, default: 2017-01-01, minimum: 2017-01-01, maximum: 2030-12-31, description: "First business day."}
  to_date: {type: date, default: 2017-12-31, minimum: 2017-01-01, maximum: 2030-12-31, description: "Last business day."}
  department: {type: string, default: null, max_length: 64, description: "Department, exactly as in the data; empty for all.", examples: [GROCERY]}
  store_id: {type: integer, default: null, minimum: 1, maximum: 2147483647, description: "Store; empty for all.", examples: [367]}
---*/
with visits as (
    select household_id, sales_usd, list_usd
    from baskets
    where
        $department::varchar is null
        and business_date between $from_date::date and $to_date::date
        and ($store_id::integer is null or store_id = $store_id::integer)
    union all
    select household_id, sales_usd, list_usd
    from basket_departments
    where
        department = $department::varchar
        and business_date between $from_date::date and $to_date::date
        and ($store_id::integer is null or store_id = $store_id::integer)
),

by_household as (
    select household_id, count(*) as baskets, sum(sales_usd) as sales_usd, sum(list_usd) as list_usd
    from visits
    group by household_id
),

labelled as (
    select
        b.*,
        case $dimension::varchar
            when 'age' then h.age
            when 'income' then h.income
            when 'home_ownership' then h.home_ownership
            when 'marital_status' then h.marital_status
            when 'household_size' then h.household_size
            when 'household_comp' then h.household_comp
            when 'kids_count' then h.kids_count
        end as segment
    from by_household as b
    inner join households as h on b.household_id = h.household_id
)

select
    $dimension::varchar as dimension,
    segment,
    count(*)::bigint as households,
    sum(sales_usd)::double as sales_usd,
    round(100 * sum(sales_usd)::double / nullif(sum(sum(sales_usd)) over (), 0)::double, 2) as share_pct,
    sum(baskets)::bigint as baskets,
    round(sum(sales_usd)::double / count(*), 2) as sales_per_household_usd,
    round(sum(sales_usd)::double / sum(baskets), 2) as sales_per_basket_usd,
    round(sum(baskets)::double / count(*), 2) as baskets_per_household,
    round(100 * sum(list_usd - sales_usd)::double / nullif(sum(list_usd), 0)::double, 2) as discount_pct
from labelled
group by segment
order by segment = 'UNKNOWN', sales_per_household_usd desc, segment
