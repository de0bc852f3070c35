-- no-transaction
-- The back office filters orders by status.
create index concurrently orders_status_idx on orders (status);
