drop view event_log_events;
drop table event_log_batches;
drop table event_logs;
