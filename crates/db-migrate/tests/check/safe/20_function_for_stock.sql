-- What can still be sold of a product.
create or replace function available_stock(which bigint) returns bigint
language sql stable as $$
    select coalesce(sum(quantity - reserved), 0) from stock_levels where product_id = which
$$;
