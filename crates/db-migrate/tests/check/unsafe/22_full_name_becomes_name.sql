-- Companies have a name too, not only a full name.
alter table customers rename column full_name to name;
