-- Logical replication wants a primary key on shipments.
set lock_timeout = '2s';
alter table shipments add constraint shipments_pkey primary key using index shipments_id_uidx;
