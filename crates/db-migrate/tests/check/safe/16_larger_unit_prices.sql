-- Machines cost more than screws: more digits before the point.
alter table order_items alter column unit_price type numeric(14, 2);
