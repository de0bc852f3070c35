-- no-transaction
-- Indexes for the new search page, and a word about them.
create index concurrently products_title_idx on products (title);
comment on index products_title_idx is 'search page';
create index orders_total_idx on orders (total);
create index concurrently payments_paid_at_idx on payments (paid_at);
analyze products;
