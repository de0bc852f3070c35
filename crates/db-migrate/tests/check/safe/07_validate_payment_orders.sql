-- Look whether every payment belongs to an order.
alter table payments validate constraint payments_order_id_fkey;
