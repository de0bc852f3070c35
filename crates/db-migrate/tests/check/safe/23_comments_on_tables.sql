-- Tell newcomers what the columns mean.
comment on table orders is 'one row for each order of a customer';
comment on column orders.total is 'with tax, in the currency of the order';
comment on column products.weight_grams is 'null where unknown; do not drop table or truncate for that';
