/*---
description: >-
  One row per sales line, with the store's local business day, the product's department and amounts as exact decimals.
  department is UNKNOWN where the product is not in products.
---*/
-- Business day. Timestamps are stored in UTC; the stores keep US Eastern time (the data's weeks turn over at 05:00 UTC in
-- winter and 04:00 in summer). The offset is worked out here, once, from the rule in force in the United States since
-- 2007 (daylight time from 02:00 on the second Sunday of March to 02:00 on the first Sunday of November), so that neither
-- publishing nor serving needs DuckDB's ICU extension or a time zone database. Data from before 2007 needs another rule.
--
-- Amounts. The package's documentation writes amounts with a dollar sign, hence _usd. Casting to DECIMAL makes every sum
-- exact and independent of the order in which threads add up. list_usd is the value before the store's own discounts;
-- sales_usd is what the store receives; a manufacturer's coupon (coupon_discount_usd) is paid for by the manufacturer.
--
-- Units. The quantity of gasoline seems to be thousandths of a gallon (a fill averages 11,000 for 25 USD), so its units are
-- NULL: they would drown every sum of units. quantity keeps the original number.
--
-- Sorted by store and product: a ranking of one store's products reads one stretch of the table, in group order.
with stamped as (
    select
        *,
        make_date(year(transaction_timestamp), 3, 8) as march_8,
        make_date(year(transaction_timestamp), 11, 1) as november_1
    from transactions
),

localised as (
    select
        *,
        transaction_timestamp - case
            when transaction_timestamp >= march_8 + to_days(((7 - dayofweek(march_8)) % 7)::integer) + interval 7 hour
                and transaction_timestamp < november_1 + to_days(((7 - dayofweek(november_1)) % 7)::integer) + interval 6 hour
                then interval 4 hour
            else interval 5 hour
        end as local_timestamp
    from stamped
)

select
    l.basket_id,
    l.household_id::integer as household_id,
    l.store_id::integer as store_id,
    l.product_id::integer as product_id,
    coalesce(p.department, 'UNKNOWN') as department,
    l.local_timestamp::date as business_date,
    hour(l.local_timestamp)::tinyint as local_hour,
    l.week::smallint as week,
    l.quantity::integer as quantity,
    case when p.department = 'FUEL' or p.product_type like 'GASOLINE%' then null else l.quantity::integer end as units,
    l.sales_value::decimal(12, 2) as sales_usd,
    (l.sales_value + l.retail_disc + l.coupon_match_disc)::decimal(12, 2) as list_usd,
    l.retail_disc::decimal(12, 2) as loyalty_discount_usd,
    l.coupon_match_disc::decimal(12, 2) as coupon_match_usd,
    l.coupon_disc::decimal(12, 2) as coupon_discount_usd
from localised as l
left join products as p on l.product_id = p.product_id
order by store_id, product_id, business_date, basket_id
