-- A discount is a percentage.
alter table coupons add constraint coupons_discount_range check (discount > 0 and discount <= 100) not valid;
alter table coupons validate constraint coupons_discount_range;
