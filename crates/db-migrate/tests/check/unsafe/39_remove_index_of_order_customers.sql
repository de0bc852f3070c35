-- Replaced by a newer index.
drop index concurrently if exists orders_customer_id_idx;
