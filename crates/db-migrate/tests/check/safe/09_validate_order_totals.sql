-- All totals were repaired last week, so say so.
ALTER TABLE orders VALIDATE CONSTRAINT orders_total_not_negative;
