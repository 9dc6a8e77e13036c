/*---
description: >-
  One row per ordered pair of product categories bought together in at least 50 baskets: baskets with each, with both,
  and all baskets. Fuel, coupons and lines without a category are left out.
---*/
-- Market-basket counts (support, confidence and lift follow from them by division). The floor of 50 baskets keeps chance
-- pairs out: the lift of a pair seen a handful of times says nothing.
with basket_categories as (
    select distinct s.basket_id, p.product_category
    from sales_lines as s
    inner join products as p on s.product_id = p.product_id
    where p.product_category is not null and s.department not in ('FUEL', 'COUPON')
),

totals as (
    select count(distinct basket_id) as baskets from basket_categories
),

singles as (
    select product_category, count(*) as baskets
    from basket_categories
    group by product_category
),

pairs as (
    select a.product_category as category, b.product_category as other_category, count(*) as baskets
    from basket_categories as a
    inner join basket_categories as b on a.basket_id = b.basket_id and a.product_category < b.product_category
    group by a.product_category, b.product_category
    having count(*) >= 50
),

both_ways as (
    select category, other_category, baskets from pairs
    union all
    select other_category, category, baskets from pairs
)

select
    w.category,
    w.other_category,
    w.baskets::integer as baskets_with_both,
    c.baskets::integer as baskets_with_category,
    o.baskets::integer as baskets_with_other,
    t.baskets::integer as baskets_total
from both_ways as w
inner join singles as c on w.category = c.product_category
inner join singles as o on w.other_category = o.product_category
cross join totals as t
order by w.category, w.other_category
