-- Products get readable addresses.
alter table products add column slug text unique;
