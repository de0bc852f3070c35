-- The planner may call this in parallel, and it costs little.
alter function order_item_count(bigint) parallel safe cost 50;
