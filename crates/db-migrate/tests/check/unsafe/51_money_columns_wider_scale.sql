-- All amounts of money get three decimals, for the dinar.
do $$
declare
    c record;
begin
    for c in
        select table_name, column_name
        from information_schema.columns
        where table_schema = 'public'
          and (table_name, column_name) in (('payments', 'amount'), ('order_items', 'unit_price'))
    loop
        execute format('alter table %I alter column %I type numeric(14, 3)', c.table_name, c.column_name);
    end loop;
end
$$;
