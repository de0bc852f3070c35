-- no-transaction
-- db-migrate: step fill-took
-- Where no build has ended, there is nothing to fill, and other migrators pass.
do $$ begin
    if exists (select from builds where ended_at is not null and took_ms is null) then
        raise exception 'run `buildwatch migrate up`, whose step fill-took fills builds.took_ms in batches';
    end if;
end $$;
