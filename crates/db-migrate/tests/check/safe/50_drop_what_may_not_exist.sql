-- An experiment of last year left things on some installations only.
drop table if exists experiment_results;
drop view if exists experiment_summary;
drop function if exists experiment_score(bigint);
