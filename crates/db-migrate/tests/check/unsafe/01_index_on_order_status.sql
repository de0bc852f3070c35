-- The back office filters orders by status, which is slow without an index.
create index orders_status_idx on orders (status);
