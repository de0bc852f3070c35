-- The amount of a voucher is known only later.
alter table payments alter column amount drop not null;
