-- We are running out of ids for order items.
alter table order_items alter column id type bigint;
