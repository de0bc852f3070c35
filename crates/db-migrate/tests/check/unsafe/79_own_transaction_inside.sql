-- no-transaction
-- The total weight must make sense; both steps or none.
begin;
alter table products add constraint products_weight_positive check (weight_grams > 0) not valid;
alter table products validate constraint products_weight_positive;
commit;
