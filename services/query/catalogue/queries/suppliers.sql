/*---
title: Suppliers
titles: {pt: Fornecedores}
description: >-
  Suppliers (manufacturers) by sales (or by change or units) between two days (both included), with share, change on the period of the same length
  before, private-label part and reach. products_sold, households and stores count the whole data, not the period.
  change_pct is empty when the data does not cover the earlier period. An unknown department gives no rows.
ask:
  - suppliers
  - share of suppliers
  - top suppliers
  - supplier ranking
  - sales by supplier
  - supplier performance
  - private label share of suppliers
  - growth of suppliers
  - private label sales by supplier
  - which supplier sells the most
says:
  ranked_by: {sort_by: {sales: sales_usd, change: change_pct, units: units}}
  best_by: [share_pct, discount_pct, private_label_pct]
freshness: suppliers
timeout_seconds: 5
parameters:
  from_date: {type: date, default: 2017-07-03, minimum: 2017-01-01, maximum: 2030-12-31, description: "First business day."}
  to_date: {type: date, default: 2017-12-31, minimum: 2017-01-01, maximum: 2030-12-31, description: "Last business day."}
  department: {type: string, default: null, max_length: 64, description: "Department, exactly as in the data; empty for all.", examples: [GROCERY]}
  min_sales_usd: {type: number, default: 0, minimum: 0, maximum: 1000000000, description: "Leave out suppliers below these sales."}
  sort_by:
    type: string
    default: sales
    choices: [sales, change, units]
    description: "What makes a supplier rank first."
    synonyms:
      sales: []
      change: [by growth, by change, grew the most, grew most, grown the most, growing the most, fastest growing, highest growth,
        biggest growth, most growth, cresceu mais, cresceram mais, mais cresceu, mais cresceram, mais cresce, maior
        crescimento, por crescimento, por variação]
      units: [by units, most units, in units, por unidades, mais unidades, em unidades, by quantity, por quantidade]
  limit:
    type: integer
    default: 50
    minimum: 1
    maximum: 1000
    description: "How many suppliers."
    ask: ["# suppliers", "# fornecedores", "# manufacturers", "# fabricantes"]
---*/
with totals as (
    select
        manufacturer_id,
        sum(sales_usd) filter (where business_date >= $from_date::date) as sales_usd,
        sum(sales_usd) filter (where business_date < $from_date::date) as previous_sales_usd,
        sum(list_usd) filter (where business_date >= $from_date::date) as list_usd,
        sum(private_label_sales_usd) filter (where business_date >= $from_date::date) as private_label_sales_usd,
        sum(units) filter (where business_date >= $from_date::date) as units
    from supplier_days
    where
        business_date between $from_date::date - ($to_date::date - $from_date::date + 1)::integer and $to_date::date
        and ($department::varchar is null or department = $department::varchar)
    group by manufacturer_id
),

measured as (
    select
        *,
        round(100 * sales_usd::double / nullif(sum(sales_usd) over (), 0)::double, 2) as share_pct,
        case
            when
                $from_date::date - ($to_date::date - $from_date::date + 1)::integer
                >= (select min(business_date) from calendar where has_data)
                then round(100 * (sales_usd - previous_sales_usd)::double / nullif(previous_sales_usd, 0)::double, 2)
        end as change_pct
    from totals
    where sales_usd is not null
),

ranked as (
    select
        *,
        row_number() over (
            order by
                case $sort_by::varchar
                    when 'change' then change_pct
                    when 'units' then units::double
                    else sales_usd::double
                end desc nulls last,
                manufacturer_id
        ) as rank
    from measured
    where sales_usd >= $min_sales_usd::double
)

select
    r.rank::integer as rank,
    r.manufacturer_id,
    r.sales_usd::double as sales_usd,
    r.share_pct,
    coalesce(r.previous_sales_usd, 0)::double as previous_sales_usd,
    r.change_pct,
    r.units::bigint as units,
    round(100 * (r.list_usd - r.sales_usd)::double / nullif(r.list_usd, 0)::double, 2) as discount_pct,
    round(100 * r.private_label_sales_usd::double / nullif(r.sales_usd, 0)::double, 2) as private_label_pct,
    p.products_sold,
    p.households,
    p.stores
from ranked as r
left join suppliers_profile as p
    on r.manufacturer_id = p.manufacturer_id and p.department is not distinct from $department::varchar
where r.rank <= $limit::integer
order by r.rank
