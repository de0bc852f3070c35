-- Remember when we last reminded somebody of a cart.
alter table carts add column reminded_at timestamptz default clock_timestamp();
