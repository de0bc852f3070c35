-- One account per phone number.
alter table customers add constraint customers_phone_key unique (phone);
