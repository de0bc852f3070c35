-- no-transaction
-- A broken attempt may have left the index invalid, so build it anew.
drop index concurrently if exists payments_reference_idx;
create index concurrently if not exists payments_reference_idx on payments (reference);
