-- Shipping costs are computed from the weight, so every product needs one.
ALTER TABLE products ALTER COLUMN weight_grams SET NOT NULL;
