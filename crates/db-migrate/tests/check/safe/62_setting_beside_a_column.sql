-- A channel for orders, and the warehouse that serves it.
alter table orders add column channel text;
insert into warehouses (code, address) values ('WEB', 'Street 99');
