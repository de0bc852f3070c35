-- Orders must point to coupons that exist.
alter table orders
    add constraint orders_coupon_id_fkey foreign key (coupon_id) references coupons (id);
