-- no-transaction
-- After the great clean-up.
VACUUM (ANALYZE) orders;
