-- Orders may name the warehouse that they are sent from.
set lock_timeout = '2s';
alter table orders add column warehouse_id bigint references warehouses (id);
