/*---
title: Forecast back-test by week
titles: {pt: Previsto e realizado por semana}
description: >-
  What was forecast one week ahead for past weeks of one department, with intervals, beside what was sold and the naive
  forecast. in_backtest marks the last eight full weeks, on which no parameter was chosen; earlier weeks served to choose.
ask:
  - forecast back-test by week
  - forecast versus actual sales by week
  - past forecasts beside actual sales
  - forecast and actual
  - forecast compared with what was sold
  - backtest of the forecast
  - previsto contra realizado
  - previsto e realizado por semana
  - past forecasts
says:
  best_by: [sales_usd, forecast_usd]
freshness: forecast
timeout_seconds: 5
parameters:
  department: {type: string, default: ALL DEPARTMENTS, max_length: 64, description: "Department, exactly as in the data, or ALL DEPARTMENTS.", examples: [GROCERY]}
  weeks:
    type: integer
    default: 8
    minimum: 1
    maximum: 520
    description: "How many of the last full weeks."
    ask: ["last # weeks", "past # weeks", "últimas # semanas", "# últimas semanas", "# last weeks", "# past weeks",
      "# semanas passadas"]
---*/
with numbered as (
    select *, row_number() over (order by week desc) as weeks_back
    from forecast_steps
    where department = $department::varchar
)

select
    department,
    week,
    week_start,
    in_backtest,
    sales_usd,
    round(forecast_usd, 2) as forecast_usd,
    round(lower_80_usd, 2) as lower_80_usd,
    round(upper_80_usd, 2) as upper_80_usd,
    round(lower_95_usd, 2) as lower_95_usd,
    round(upper_95_usd, 2) as upper_95_usd,
    naive_usd,
    round(forecast_usd - sales_usd, 2) as error_usd,
    round(naive_usd - sales_usd, 2) as naive_error_usd
from numbered
where weeks_back <= $weeks::integer
order by week
