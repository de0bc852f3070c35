-- Nobody can order zero pieces of something.
alter table order_items add constraint order_items_quantity_positive check (quantity > 0);
