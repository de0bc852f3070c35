-- Shipments are found by their number through a constraint.
alter table shipments add constraint shipments_id_key unique using index shipments_id_uidx;
alter table shipments drop constraint shipments_id_key, add constraint shipments_pkey primary key (id); -- squawk-ignore disallowed-unique-constraint
