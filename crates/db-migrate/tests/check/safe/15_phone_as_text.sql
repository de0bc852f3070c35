-- No need to limit the length of phone numbers.
set lock_timeout = '2s';
alter table customers alter column phone type text;
