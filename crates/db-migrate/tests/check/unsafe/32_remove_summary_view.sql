-- The new overview page reads the tables itself.
drop view order_summaries;
