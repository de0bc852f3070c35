-- The totals come from the items from now on.
update orders set total = (select coalesce(sum(unit_price * quantity), 0) from order_items where order_items.order_id = orders.id);
