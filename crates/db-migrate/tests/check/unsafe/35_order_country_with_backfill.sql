-- Keep the country with each order, and fill it for those we have.
alter table orders add column country text;
update orders o
    set country = c.country_code
    from customers c
    where c.id = o.customer_id;
