-- The column goes with the version before.
select;
