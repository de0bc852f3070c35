-- Orders are sent from the first warehouse unless told otherwise.
alter table orders add column warehouse_id bigint default 1 references warehouses (id);
