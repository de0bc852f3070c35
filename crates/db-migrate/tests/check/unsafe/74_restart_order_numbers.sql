-- The new year starts with order number 1.
alter table orders alter column id restart with 1;
