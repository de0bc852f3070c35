-- no-transaction
-- One index, built by a block that commits.
do $$ begin
    create index payments_method_idx on payments (method);
    commit;
end $$;
