-- Record for each order where it came from; what exists came from the web.
alter table orders add column channel text not null default 'web';
alter table orders alter column channel drop default;
