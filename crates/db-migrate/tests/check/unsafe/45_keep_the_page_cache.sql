-- The page cache should live on after a crash.
alter table page_cache set logged;
