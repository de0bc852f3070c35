-- Vouchers are no method of payment any more.
update payments set method = 'transfer' where method = 'voucher';
alter type payment_method rename to payment_method_old;
create type payment_method as enum ('card', 'transfer');
alter table payments alter column method drop default;
-- db-migrate: allow changing-column-type the table is small
alter table payments alter column method type payment_method using method::text::payment_method;
alter table payments alter column method set default 'card';
drop type payment_method_old;
