-- Customers should see an id that does not tell how many orders we have.
alter table orders add column public_id uuid not null default gen_random_uuid();
