/*---
description: >-
  One row per campaign: type, dates, households targeted, coupons and products on offer and redemptions.
---*/
with targeted as (
    select campaign_id, count(distinct household_id) as households from campaigns group by campaign_id
),

offered as (
    select campaign_id, count(distinct coupon_upc) as coupons, count(distinct product_id) as products
    from coupons
    group by campaign_id
),

redeemed as (
    select
        campaign_id,
        count(*) as redemptions,
        count(distinct household_id) as households,
        count(distinct coupon_upc) as coupons,
        max(redemption_date)::date as last_redemption_date
    from coupon_redemptions
    group by campaign_id
)

select
    d.campaign_id::integer as campaign_id,
    d.campaign_type,
    d.start_date::date as start_date,
    d.end_date::date as end_date,
    coalesce(t.households, 0)::integer as households_targeted,
    coalesce(o.coupons, 0)::integer as coupons_offered,
    coalesce(o.products, 0)::integer as products_covered,
    coalesce(r.redemptions, 0)::integer as redemptions,
    coalesce(r.households, 0)::integer as households_redeeming,
    coalesce(r.coupons, 0)::integer as coupons_redeemed,
    r.last_redemption_date,
    -- The data ends before some campaigns do: their redemptions are not complete.
    d.end_date::date <= (select max(business_date) from sales_lines) as complete
from campaign_descriptions as d
left join targeted as t on d.campaign_id = t.campaign_id
left join offered as o on d.campaign_id = o.campaign_id
left join redeemed as r on d.campaign_id = r.campaign_id
order by d.campaign_id
