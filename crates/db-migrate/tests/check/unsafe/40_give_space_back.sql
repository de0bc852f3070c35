-- no-transaction
-- Give the space of deleted orders back to the disk.
vacuum full orders;
