-- Our British friends say basket.
alter table carts rename to baskets;
