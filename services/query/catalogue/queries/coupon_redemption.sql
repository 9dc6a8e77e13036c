/*---
title: Coupon redemption
titles: {pt: Resgate de cupons}
description: >-
  Coupon campaigns that ran on any of the given days: households targeted and redeeming, redemptions, coupons used. The
  data ends before some campaigns do: complete is false for them and their figures are a lower bound.
ask:
  - coupon redemption
  - coupon campaigns
  - redemption of coupons
  - coupon redemption rate
  - campaign results
  - coupons redeemed by campaign
  - which campaign had the most redemptions
  - how many coupons were redeemed
  - coupon use
  - campaign performance
  - customers targeted by campaigns
  - campaigns
  - best campaign
  - which campaign worked best
says:
  best_by: [household_redemption_pct, redemptions, households_redeeming, households_targeted, coupons_redeemed]
freshness: reports
timeout_seconds: 5
parameters:
  campaign_type: {type: string, default: null, max_length: 64, description: "Type of campaign, exactly as in the data; empty for all.", examples: [Type A]}
  from_date: {type: date, default: 2016-01-01, minimum: 2016-01-01, maximum: 2030-12-31, description: "First day."}
  to_date: {type: date, default: 2030-12-31, minimum: 2016-01-01, maximum: 2030-12-31, description: "Last day."}
  complete_only:
    type: boolean
    default: false
    description: "Leave out campaigns that the data does not cover to their end."
    synonyms:
      true: [complete campaigns, only complete, complete only, completed campaigns, campanhas completas, somente
        completas, apenas completas, só completas, campanhas encerradas, finished campaigns, ended campaigns, só as
        completas, apenas as completas]
  limit:
    type: integer
    default: 100
    minimum: 1
    maximum: 1000
    description: "How many campaigns."
    ask: ["# campaigns", "# campanhas"]
---*/
select
    campaign_id,
    campaign_type,
    start_date,
    end_date,
    complete,
    households_targeted,
    households_redeeming,
    round(100.0 * households_redeeming / nullif(households_targeted, 0), 2) as household_redemption_pct,
    redemptions,
    round(redemptions::double / nullif(households_redeeming, 0), 2) as redemptions_per_redeeming_household,
    coupons_offered,
    coupons_redeemed,
    round(100.0 * coupons_redeemed / nullif(coupons_offered, 0), 2) as coupons_used_pct,
    products_covered,
    last_redemption_date
from coupon_campaigns
where
    ($campaign_type::varchar is null or campaign_type = $campaign_type::varchar)
    and start_date <= $to_date::date
    and end_date >= $from_date::date
    and (complete or not $complete_only::boolean)
order by household_redemption_pct desc nulls last, campaign_id
limit $limit::integer
