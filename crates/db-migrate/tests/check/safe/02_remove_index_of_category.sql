-- no-transaction
-- A newer index does its work.
create index concurrently products_category_title_idx on products (category_id, title);
drop index concurrently products_category_id_idx;
