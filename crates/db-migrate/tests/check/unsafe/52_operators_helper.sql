-- Use the helper of the operators for a missing index.
select ops_add_index('products', 'supplier_id');
