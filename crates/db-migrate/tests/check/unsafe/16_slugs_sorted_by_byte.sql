-- Slugs are plain ASCII: sort and compare them by byte.
alter table categories alter column slug type text collate "C";
