-- no-transaction
-- A code may be given twice.
drop index concurrently products_sku_uidx;
