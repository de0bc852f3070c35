-- Count only the items of which at least this number was ordered.
drop function order_item_count(bigint);
create function order_item_count(which bigint, at_least integer) returns bigint
language sql stable as $$
    select count(*) from order_items where order_id = which and quantity >= at_least
$$;
