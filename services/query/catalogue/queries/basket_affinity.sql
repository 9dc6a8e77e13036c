/*---
title: Basket affinity
titles: {pt: Afinidade de cesta}
description: >-
  Product categories bought together in one basket, over the whole data. support_pct: baskets with both, of all
  baskets; confidence_pct: baskets with both, of those with category; lift: how many times more often than if the two were
  bought independently of each other. Fuel, coupons and products without a category are left out, and pairs seen in fewer
  than 50 baskets are not kept. An unknown category gives no rows.
ask:
  - basket affinity
  - products bought together
  - categories bought together
  - what is bought together
  - what do people buy with
  - o que se compra com
  - o que compram junto com
  - market basket analysis
  - bought in the same basket
  - what else do customers buy with
  - pairs of categories
  - "{category} bought together"
  - "what do people buy with {category}"
  - "products bought with {category}"
says:
  ranked_by: {sort_by: {lift: lift, confidence: confidence_pct, baskets: baskets_with_both}}
freshness: reports
timeout_seconds: 5
parameters:
  category: {type: string, default: null, max_length: 64, description: "Product category, exactly as in the data; empty for all.", examples: [BEEF, SOFT DRINKS]}
  min_baskets: {type: integer, default: 500, minimum: 50, maximum: 1000000000, description: "Fewest baskets that hold both."}
  min_lift:
    type: number
    default: 1
    minimum: 0
    maximum: 1000000
    description: "Smallest lift."
    ask: ["lift above #", "lift over #", "lift of at least #", "lift acima de #", "lift maior que #", "minimum lift
      #", "lift mínimo de #", "lift mínimo #"]
  sort_by:
    type: string
    default: lift
    choices: [lift, confidence, baskets]
    description: "What makes a pair come first."
    synonyms:
      lift: [by lift, highest lift, por lift, maior lift]
      confidence: [by confidence, highest confidence, por confiança, maior confiança]
      baskets: [by baskets, most baskets, by number of baskets, por cestas, mais cestas, por número de cestas, most
        often, most frequently, mais frequentes, com mais frequência, por frequência, by frequency, mais vezes]
  limit:
    type: integer
    default: 50
    minimum: 1
    maximum: 1000
    description: "How many pairs."
    ask: ["# pairs", "# pares", "# combinations", "# combinações"]
---*/
with measured as (
    select
        category,
        other_category,
        baskets_with_both,
        baskets_with_category,
        baskets_with_other,
        100.0::double * baskets_with_both / baskets_total as support_pct,
        100.0::double * baskets_with_both / baskets_with_category as confidence_pct,
        baskets_with_both::double * baskets_total / (baskets_with_category::double * baskets_with_other) as lift
    from category_pairs
    where
        baskets_with_both >= $min_baskets::integer
        -- Without a category each pair is listed once, not in both directions.
        and (category = $category::varchar or ($category::varchar is null and category < other_category))
)

select
    category,
    other_category,
    baskets_with_both,
    baskets_with_category,
    baskets_with_other,
    round(support_pct, 3) as support_pct,
    round(confidence_pct, 2) as confidence_pct,
    round(lift, 3) as lift
from measured
where lift >= $min_lift::double
order by
    case $sort_by::varchar when 'confidence' then confidence_pct when 'baskets' then baskets_with_both::double else lift end desc,
    category,
    other_category
limit $limit::integer
