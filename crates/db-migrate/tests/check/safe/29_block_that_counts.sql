-- Say how many orders are open before the release.
do $$
declare
    n bigint;
begin
    select count(*) into n from orders where status = 'new';
    raise notice '% new orders', n;
end
$$;
