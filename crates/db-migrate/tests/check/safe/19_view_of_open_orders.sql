-- The packers see only what is to be packed.
create view open_orders as
    select id, customer_id, total, placed_at
    from orders
    where status in ('new', 'paid');
grant select on open_orders to public;
