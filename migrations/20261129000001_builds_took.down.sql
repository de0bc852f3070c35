-- The repeatable file makes the view again.
drop view if exists build_overview;
alter table builds drop took_ms;
