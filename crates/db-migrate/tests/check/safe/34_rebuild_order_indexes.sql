-- no-transaction
-- The indexes have grown fat.
reindex index concurrently order_items_order_id_idx;
reindex table concurrently payments;
