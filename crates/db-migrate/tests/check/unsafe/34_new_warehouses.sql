-- The warehouses moved; enter them afresh.
truncate warehouses restart identity cascade;
insert into warehouses (code, address) values ('NORTH', 'Harbour 1'), ('SOUTH', 'Valley 2');
