-- no-transaction
-- Order items need wider ids: a second column first, filled later.
set lock_timeout = '2s';
alter table order_items add column wide_id bigint;
create unique index concurrently order_items_wide_id_uidx on order_items (wide_id);
