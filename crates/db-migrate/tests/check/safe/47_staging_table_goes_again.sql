-- Take in new suppliers by way of a staging table.
create table staged_suppliers (name text, country text);
insert into staged_suppliers values ('Nordic Wood', 'Norway'), ('Alpine Steel', 'Austria');
insert into suppliers (name, country) select name, country from staged_suppliers;
drop table staged_suppliers;
