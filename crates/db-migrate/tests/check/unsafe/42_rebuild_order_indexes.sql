-- The indexes have grown fat.
reindex table order_items;
