-- Some installations have this index already.
do $$
begin
    if not exists (select 1 from pg_indexes where indexname = 'payments_paid_at_idx') then
        create index payments_paid_at_idx on payments (paid_at);
    end if;
end
$$;
