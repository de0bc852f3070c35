-- Mail addresses are private and do not belong in a summary.
drop view order_summaries;
create view order_summaries as
    select id, customer_id, status, total, placed_at
    from orders;
