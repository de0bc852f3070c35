-- The unique index is there, so use it as the primary key.
alter table import_batches
    add constraint import_batches_pkey primary key using index import_batches_batch_no_uidx;
