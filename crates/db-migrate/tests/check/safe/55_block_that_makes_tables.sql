-- Empty tables for the events of the years to come.
do $$
begin
    for y in 2028..2030 loop
        execute format('create table events_%s (like events including all)', y);
        execute format('create index on events_%s (kind)', y);
    end loop;
end
$$;
