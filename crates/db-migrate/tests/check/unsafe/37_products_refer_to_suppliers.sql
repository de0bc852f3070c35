-- Products must name a supplier that we know.
alter table products
    add constraint products_supplier_id_fkey foreign key (supplier_id) references suppliers (id) not valid;
alter table products validate constraint products_supplier_id_fkey;
