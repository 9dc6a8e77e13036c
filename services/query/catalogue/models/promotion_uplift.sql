/*---
description: >-
  Per department, product category and kind of promotion (display, mailer, display and mailer): sales in promoted
  product-store-weeks beside what the same products sold in the same stores in weeks without promotion.
---*/
-- Method: a matched comparison. For every product in every store that promotions covers, weeks are split into promoted
-- (by kind) and not promoted, and each promoted week is compared with that same product's and store's mean sales in its
-- weeks without promotion, weeks without a sale included as zero. Comparing a product only with itself in the same store
-- keeps the mix out: popular products in large stores are promoted more often. Only full weeks count, and only from the
-- product's first to its last sale in any store, so that weeks before it was launched are not taken for weak weeks.
-- Pairs promoted in every such week have no comparison and are left out: covered_pct of the query says how much remains.
-- It is an association, not a proof of cause: retailers promote what they expect to sell, and in the weeks they choose.
with weeks as (
    select week from calendar_weeks where full_week
),

sales as (
    select product_id, store_id, week, sum(sales_usd) as sales_usd
    from sales_lines
    where week in (select week from weeks)
    group by product_id, store_id, week
),

launched as (
    select product_id, min(week) as first_week, max(week) as last_week
    from sales
    group by product_id
),

listed as (
    select s.product_id, s.store_id, l.first_week, l.last_week, sum(s.sales_usd) as sales_usd
    from sales as s
    inner join launched as l on s.product_id = l.product_id
    where s.store_id in (select distinct store_id from promotions)
    group by s.product_id, s.store_id, l.first_week, l.last_week
),

-- The table repeats some product-store-weeks (one row per placement): a week is one kind, over all its rows.
promoted_weeks as (
    select
        p.product_id,
        p.store_id,
        p.week,
        bool_or(p.display_location <> '0') as on_display,
        bool_or(p.mailer_location <> '0') as in_mailer
    from promotions as p
    inner join listed as l
        on p.product_id = l.product_id and p.store_id = l.store_id and p.week between l.first_week and l.last_week
    where p.week in (select week from weeks)
    group by p.product_id, p.store_id, p.week
),

by_kind as (
    select
        w.product_id,
        w.store_id,
        case
            when w.on_display and w.in_mailer then 'display and mailer'
            when w.on_display then 'display'
            else 'mailer'
        end as promotion_type,
        count(*) as promoted_weeks,
        coalesce(sum(s.sales_usd), 0) as promoted_sales_usd
    from promoted_weeks as w
    left join sales as s on w.product_id = s.product_id and w.store_id = s.store_id and w.week = s.week
    where w.on_display or w.in_mailer
    group by 1, 2, 3
),

by_pair as (
    select
        product_id,
        store_id,
        sum(promoted_weeks) as promoted_weeks,
        sum(promoted_sales_usd) as promoted_sales_usd
    from by_kind
    group by product_id, store_id
),

baseline as (
    select
        l.product_id,
        l.store_id,
        (l.sales_usd - b.promoted_sales_usd)::double / nullif(l.last_week - l.first_week + 1 - b.promoted_weeks, 0)
            as usual_weekly_usd
    from listed as l
    inner join by_pair as b on l.product_id = b.product_id and l.store_id = b.store_id
)

select
    p.department,
    coalesce(p.product_category, 'UNKNOWN') as product_category,
    k.promotion_type,
    sum(k.promoted_weeks)::integer as promoted_product_store_weeks,
    (sum(k.promoted_weeks) filter (where b.usual_weekly_usd is not null))::integer as compared_product_store_weeks,
    coalesce(sum(k.promoted_sales_usd) filter (where b.usual_weekly_usd is not null), 0)::decimal(14, 2)
        as promoted_sales_usd,
    coalesce(sum(k.promoted_weeks * b.usual_weekly_usd), 0)::decimal(14, 2) as usual_sales_usd
from by_kind as k
inner join baseline as b on k.product_id = b.product_id and k.store_id = b.store_id
inner join products as p on k.product_id = p.product_id
group by 1, 2, 3
order by 1, 2, 3
