-- Customers give one to five stars.
alter table products add column stars integer check (stars between 1 and 5);
