-- no-transaction
-- One account per phone number: first the index, then the constraint.
create unique index concurrently customers_phone_uidx on customers (phone);
alter table customers add constraint customers_phone_key unique using index customers_phone_uidx;
