-- The coupon service gives out the ids.
alter table coupons alter column id drop identity if exists;
