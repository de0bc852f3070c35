-- Nobody can order zero pieces of something, from now on.
alter table order_items add constraint order_items_quantity_positive check (quantity > 0) not valid;
