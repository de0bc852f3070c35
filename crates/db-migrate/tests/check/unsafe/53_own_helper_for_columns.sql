-- Every main table gets a random token; a small procedure saves typing.
create procedure add_token(tbl regclass) language plpgsql as $$
begin
    execute 'alter table ' || tbl || ' add column token text default md5(random()::text)';
end
$$;
call add_token('customers');
drop procedure add_token(regclass);
