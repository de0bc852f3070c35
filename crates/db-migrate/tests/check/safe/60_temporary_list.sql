-- Who gets the thank-you mail: worked out in a temporary table.
create temporary table lucky on commit drop as
    select id from customers order by id limit 5;
create index lucky_id_idx on lucky (id);
update customers set loyalty_points = loyalty_points + 10 where id in (select id from lucky);
