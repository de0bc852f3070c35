-- When a batch came in; for the old ones today will do.
alter table import_batches add column imported_at timestamptz not null default now();
