drop table builds;
