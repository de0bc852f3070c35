-- Batches come without a number at times, so give them one of our own.
alter table import_batches add column id bigint generated always as identity;
