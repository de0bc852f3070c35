-- no-transaction
-- The planner guesses wrongly about countries and cities.
alter table customers alter column country_code set statistics 500;
create statistics customers_place (dependencies) on country_code, city from customers;
analyze customers;
