-- Only one coupon at a time.
alter table coupons
    add constraint coupons_one_at_a_time exclude using gist (daterange(valid_from, valid_to, '[]') with &&);
