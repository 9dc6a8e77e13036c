/*---
title: Promotion effect
titles: {pt: Efeito das promoções}
description: >-
  Sales of promoted products in the weeks and stores of their promotion (in-store display, mailer, or both) beside what the
  same products usually sell in the same stores in a week without promotion. uplift_pct compares the two; covered_pct says
  for how much of the promoted weeks a comparison exists. An association over the whole data, not a proof of cause.
ask:
  - promotion effect
  - effect of promotions
  - do promotions increase sales
  - promotion uplift
  - did the promotion work
  - quanto vendem a mais os produtos em promoção
  - are promotions worth it
  - promotions
  - which promotions work best
  - effect of display and mailer
  - promotion results by category
  - promotion performance
says:
  best_by: [uplift_pct, uplift_usd, promoted_sales_usd]
freshness: reports
timeout_seconds: 5
parameters:
  department: {type: string, default: null, max_length: 64, description: "Department, exactly as in the data; empty for all.", examples: [GROCERY]}
  promotion_type:
    type: string
    default: null
    choices: [display, mailer, display and mailer]
    description: "Kind of promotion; empty for each."
    synonyms:
      display: [display, displays, in-store display, ponta de gôndola, exposição, expositor, gôndola]
      mailer: [mailer, mailers, leaflet, flyer, flyers, folheto, folhetos, encarte, encartes, tabloide, panfleto]
      display and mailer: [display and mailer, mailer and display, display and flyer, display e folheto, exposição e
        folheto, both display and mailer, display e encarte, folheto e display]
  level:
    type: string
    default: department
    choices: [department, category]
    description: "One row per department, or per product category."
    synonyms:
      category: [by category, per category, categories, category, product category, por categoria, categorias,
        categoria, cada categoria]
      department: [by department, per department, por departamento, departments, departamentos]
  min_weeks: {type: integer, default: 1000, minimum: 1, maximum: 1000000000, description: "Fewest compared product-store-weeks."}
  limit:
    type: integer
    default: 100
    minimum: 1
    maximum: 1000
    description: "How many rows."
    ask: ["# categories", "# categorias", "# departments", "# departamentos"]
---*/
with grouped as (
    select
        department,
        case when $level::varchar = 'category' then product_category end as product_category,
        promotion_type,
        sum(promoted_product_store_weeks)::bigint as promoted_product_store_weeks,
        sum(compared_product_store_weeks)::bigint as compared_product_store_weeks,
        sum(promoted_sales_usd)::double as promoted_sales_usd,
        sum(usual_sales_usd)::double as usual_sales_usd
    from promotion_uplift
    where
        ($department::varchar is null or department = $department::varchar)
        and ($promotion_type::varchar is null or promotion_type = $promotion_type::varchar)
    group by 1, 2, 3
)

select
    department,
    product_category,
    promotion_type,
    promoted_product_store_weeks,
    compared_product_store_weeks,
    round(100.0 * compared_product_store_weeks / promoted_product_store_weeks, 2) as covered_pct,
    promoted_sales_usd,
    usual_sales_usd,
    round(promoted_sales_usd - usual_sales_usd, 2) as uplift_usd,
    round(100 * (promoted_sales_usd - usual_sales_usd) / nullif(usual_sales_usd, 0), 2) as uplift_pct
from grouped
where compared_product_store_weeks >= $min_weeks::bigint
order by promoted_sales_usd desc, department, product_category nulls first, promotion_type
limit $limit::integer
