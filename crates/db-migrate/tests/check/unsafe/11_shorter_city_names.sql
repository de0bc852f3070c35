-- The address label has room for 40 characters of a city.
alter table customers alter column city type varchar(40);
