-- The summary shows the currency too, at the end.
create or replace view order_summaries as
    select o.id, o.status, o.total, o.placed_at, c.email, o.currency
    from orders o
    join customers c on c.id = o.customer_id;
