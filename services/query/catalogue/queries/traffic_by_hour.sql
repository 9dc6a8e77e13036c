/*---
title: Traffic by weekday and hour
titles: {pt: Movimento por dia da semana e hora}
description: >-
  Baskets and sales by weekday and local hour (US Eastern) between two days (both included), in total and per trading day
  of that weekday. Hours without a basket are left out.
ask:
  - traffic by hour
  - traffic by weekday and hour
  - busiest hours
  - busiest days of the week
  - peak hours
  - when are the stores busiest
  - sales by hour
  - baskets by hour
  - sales by weekday
  - which day of the week sells most
  - store traffic
  - when do people shop most
  - movimento por hora
says:
  best_by: [baskets, sales_usd, sales_per_basket_usd]
  adds: [baskets, sales_usd]
  each:
    weekday: [weekday, day, day of the week, busiest days, dia, dia da semana]
    local_hour: [hour, hour of the day, time, time of day, hora, hora do dia, horário, faixa horária]
freshness: reports
timeout_seconds: 5
parameters:
  from_date: {type: date, default: 2017-10-02, minimum: 2017-01-01, maximum: 2030-12-31, description: "First business day."}
  to_date: {type: date, default: 2017-12-31, minimum: 2017-01-01, maximum: 2030-12-31, description: "Last business day."}
  store_id: {type: integer, default: null, minimum: 1, maximum: 2147483647, description: "Store; empty for all.", examples: [367]}
---*/
with days as (
    select iso_weekday, any_value(weekday) as weekday, count(*) as trading_days
    from calendar
    where trading_day and business_date between $from_date::date and $to_date::date
    group by iso_weekday
),

visits as (
    select
        isodow(business_date) as iso_weekday,
        local_hour,
        count(*) as baskets,
        sum(sales_usd) as sales_usd
    from baskets
    where
        business_date between $from_date::date and $to_date::date
        and ($store_id::integer is null or store_id = $store_id::integer)
    group by 1, 2
)

select
    d.iso_weekday,
    d.weekday,
    v.local_hour,
    d.trading_days::integer as trading_days,
    v.baskets::bigint as baskets,
    round(v.baskets::double / d.trading_days, 2) as baskets_per_day,
    v.sales_usd::double as sales_usd,
    round(v.sales_usd::double / d.trading_days, 2) as sales_per_day_usd,
    round(v.sales_usd::double / v.baskets, 2) as sales_per_basket_usd
from visits as v
inner join days as d on v.iso_weekday = d.iso_weekday
order by d.iso_weekday, v.local_hour
