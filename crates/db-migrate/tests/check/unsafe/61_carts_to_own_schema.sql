-- Keep the frontend's tables apart.
create schema frontend;
alter table carts set schema frontend;
