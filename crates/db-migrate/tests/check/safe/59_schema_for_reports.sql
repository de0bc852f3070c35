-- Reports live apart from the shop.
create schema reports;
create table reports.runs (
    id bigserial primary key,
    name text not null,
    started_at timestamp not null default now()
);
create view reports.paid_orders as select id, total from public.orders where status = 'paid';
