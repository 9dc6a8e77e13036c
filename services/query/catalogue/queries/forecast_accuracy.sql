/*---
title: Forecast accuracy
titles: {pt: Precisão da previsão}
description: >-
  Back-test of the sales forecast over the last eight full weeks, one week ahead, beside the naive forecast (last week's
  sales). scope: department, total ('ALL DEPARTMENTS' as one series), pooled (errors of all departments added up).
  WAPE is the sum of absolute errors as a percentage of sales, empty where nothing was sold.
ask:
  - forecast accuracy
  - how accurate is the forecast
  - forecast error
  - does the forecast beat the naive forecast
  - how good is the forecast
  - quão boa é a previsão
  - is the forecast better than the naive forecast
  - how wrong is the forecast
  - can we trust the forecast
  - erro da previsão
freshness: forecast
timeout_seconds: 5
parameters:
  scope:
    type: string
    default: null
    choices: [department, pooled, total]
    description: "One scope only; empty for all."
    synonyms:
      department: [by department, per department, por departamento, each department, cada departamento]
      pooled: [pooled, added up, agregado, agregada, all added up, somado, somados]
      total: [in total, as a whole, no total, overall, ao todo, total]
  department: {type: string, default: null, max_length: 64, description: "Department, exactly as in the data; empty for all.", examples: [GROCERY]}
---*/
select
    scope,
    department,
    from_week_start,
    to_week_start,
    weeks,
    horizon_weeks,
    mean_sales_usd,
    mae_usd,
    naive_mae_usd,
    wape_pct,
    naive_wape_pct,
    beats_naive,
    coverage_80_pct,
    coverage_95_pct
from forecast_accuracy
where
    ($scope::varchar is null or scope = $scope::varchar)
    and ($department::varchar is null or department = $department::varchar)
order by
    case scope when 'pooled' then 1 when 'total' then 2 else 3 end,
    mean_sales_usd desc,
    department
