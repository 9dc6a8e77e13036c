/*---
title: Sales forecast
titles: {pt: Previsão de vendas}
description: >-
  Sales per department for each of the next weeks (Monday to Sunday) after the last full week, with 80 % and 95 %
  intervals. Every row carries the department's back-test: error one week ahead over the last eight full weeks, beside the
  naive forecast's (last week's sales). Without department: every department; 'ALL DEPARTMENTS' is a series of its own,
  not the sum. An unknown department gives no rows. Yearly seasons and holidays are not forecast: one year of data holds none.
ask:
  - sales forecast
  - forecast of sales
  - sales forecast for the next weeks
  - how much will we sell
  - quanto vamos vender
  - expected sales
  - future sales
  - sales forecast by department
  - sales in the next weeks
  - predict sales
  - total sales forecast
  - forecast
says:
  best_by: [forecast_usd]
  adds: [forecast_usd]
  each: {department: [department, departamento, setor, seção]}
freshness: forecast
timeout_seconds: 5
parameters:
  department: {type: string, default: null, if_not_named: ALL DEPARTMENTS, max_length: 64, description: "Department, exactly as in the data, or ALL DEPARTMENTS; empty for every department.", examples: [GROCERY, ALL DEPARTMENTS]}
  weeks:
    type: integer
    default: 8
    minimum: 1
    maximum: 26
    description: "How many weeks ahead."
    ask: ["next # weeks", "# weeks ahead", "coming # weeks", "following # weeks", "# next weeks", "próximas #
      semanas", "# próximas semanas", "# semanas à frente", "# weeks", "# semanas"]
    synonyms:
      1: [next week, próxima semana, semana que vem, coming week]
      4: [next month, próximo mês, mês que vem, coming month]
      13: [next quarter, próximo trimestre, next three months, próximos três meses, trimestre que vem, next 3 months,
        próximos 3 meses]
      26: [next six months, próximos seis meses, next half year, próximo semestre, next 6 months, próximos 6 meses]
      8: [next two months, próximos dois meses, next 2 months, próximos 2 meses]
---*/
select
    f.department,
    f.week,
    f.week_start,
    f.horizon_weeks,
    f.forecast_usd,
    f.lower_80_usd,
    f.upper_80_usd,
    f.lower_95_usd,
    f.upper_95_usd,
    'exponential smoothing, month-start effect' as method,
    f.alpha,
    f.month_start_effect,
    f.weeks_with_sales,
    a.from_week_start as backtest_from_week_start,
    a.to_week_start as backtest_to_week_start,
    a.weeks as backtest_weeks,
    a.horizon_weeks as backtest_horizon_weeks,
    a.wape_pct as backtest_wape_pct,
    a.naive_wape_pct as backtest_naive_wape_pct,
    a.mae_usd as backtest_mae_usd,
    a.naive_mae_usd as backtest_naive_mae_usd,
    a.beats_naive as backtest_beats_naive,
    a.coverage_80_pct as backtest_coverage_80_pct,
    a.coverage_95_pct as backtest_coverage_95_pct
from forecast_weeks as f
inner join forecast_accuracy as a on f.department = a.department and a.scope in ('department', 'total')
where
    f.horizon_weeks <= $weeks::integer
    and (
        f.department = $department::varchar
        or ($department::varchar is null and f.department <> 'ALL DEPARTMENTS')
    )
order by f.department, f.horizon_weeks
