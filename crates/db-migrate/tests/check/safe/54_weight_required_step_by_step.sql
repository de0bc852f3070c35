-- no-transaction
-- Every product has a weight: check, prove, set, tidy up.
alter table products add constraint products_weight_present check (weight_grams is not null) not valid;
alter table products validate constraint products_weight_present;
alter table products alter column weight_grams set not null;
alter table products drop constraint products_weight_present;
