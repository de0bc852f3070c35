-- Prepare for tenants.
alter table customers enable row level security;
