-- A coupon code may be given out only once.
create unique index if not exists coupons_code_uidx on coupons (code);
