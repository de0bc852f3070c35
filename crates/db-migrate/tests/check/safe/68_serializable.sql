-- A check of our own before the table is made.
set lock_timeout = '2s';
set transaction isolation level serializable;
select count(*) from customers;
create table audits (id bigint primary key);
