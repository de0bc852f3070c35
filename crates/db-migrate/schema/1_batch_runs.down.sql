drop table batch_runs;
