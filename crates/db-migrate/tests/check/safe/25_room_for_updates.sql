-- Stock changes often: leave room in each page and vacuum earlier.
alter table stock_levels set (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);
