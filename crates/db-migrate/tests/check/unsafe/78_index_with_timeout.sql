-- An index for the stock page, with care for the others.
set lock_timeout = '1s';
set statement_timeout = '5min';
CREATE INDEX stock_levels_product_id_idx ON stock_levels USING btree (product_id);
