-- no-transaction
-- The indexes have grown; build them again.
reindex schema public;
