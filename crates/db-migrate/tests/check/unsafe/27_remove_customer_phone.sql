-- We no longer call anybody.
alter table customers drop column phone;
