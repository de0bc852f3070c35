-- Families share an address.
alter table customers drop constraint customers_email_key;
