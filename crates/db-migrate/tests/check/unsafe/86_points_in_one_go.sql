-- Everybody gets the points of their orders.
with spent as (select customer_id, sum(total) as total from orders group by customer_id)
update customers set loyalty_points = loyalty_points + 10;
