-- Find payments by their reference.
create index concurrently payments_reference_idx on payments (reference);
