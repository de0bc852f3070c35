-- Logical replication wants a primary key on shipments.
alter table shipments add primary key (id);
