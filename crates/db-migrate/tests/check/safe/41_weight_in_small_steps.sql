-- no-transaction
-- Fill what is missing, a few hundred rows at a time.
update products set weight_grams = 1000 where weight_grams is null and id between 1 and 200;
update products set weight_grams = 1000 where weight_grams is null and id between 201 and 400;
