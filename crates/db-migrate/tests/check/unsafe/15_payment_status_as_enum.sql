-- Only a few words are possible as the status of a payment.
create type payment_status as enum ('open', 'settled', 'refunded');
alter table payments alter column status type payment_status using status::payment_status;
