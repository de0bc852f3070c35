-- Record for each order where it came from.
alter table orders add column channel text not null default 'web';
