-- Sort the cache by path: copy it, then swap.
create table page_cache_sorted as select * from page_cache order by path;
alter table page_cache rename to page_cache_old;
alter table page_cache_sorted rename to page_cache;
