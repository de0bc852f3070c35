-- Screws are sold for fractions of a cent.
alter table products alter column price type numeric(12, 4);
