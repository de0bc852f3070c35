-- The index is there; give it the name of a constraint for on conflict.
alter table products add constraint products_sku_key unique using index products_sku_uidx;
