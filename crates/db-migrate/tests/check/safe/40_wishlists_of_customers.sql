-- Customers keep wishes; the new table points to those we have.
set lock_timeout = '2s';
create table wishes (
    customer_id bigint not null references customers (id),
    product_id bigint not null references products (id),
    wished_at timestamptz not null default now(),
    primary key (customer_id, product_id)
);
