-- Customers may send things back, for one of a few reasons.
create type return_reason as enum ('broken', 'wrong_item', 'not_needed');
create table returns (
    id uuid primary key default gen_random_uuid(),
    order_no bigint not null,
    reason return_reason not null default 'not_needed'
);
