-- Start with an empty cache.
do $$ begin
    execute 'truncate page_cache';
end $$;
