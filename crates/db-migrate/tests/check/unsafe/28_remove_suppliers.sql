-- Suppliers live in the purchasing system now.
DROP TABLE suppliers;
