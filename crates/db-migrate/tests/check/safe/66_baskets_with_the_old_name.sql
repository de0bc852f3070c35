-- Carts are baskets; programs that say carts go on.
alter table carts rename to baskets;
create view carts as select * from baskets;
