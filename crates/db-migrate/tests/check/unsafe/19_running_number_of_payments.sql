-- The book-keepers want a running number for payments.
alter table payments add column running_no bigserial;
