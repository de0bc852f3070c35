-- New products get one kilogram unless told otherwise.
alter table products alter column weight_grams set default 1000;
