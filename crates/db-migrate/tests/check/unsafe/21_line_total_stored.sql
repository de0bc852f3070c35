-- Have the total of each line at hand.
alter table order_items
    add column line_total numeric generated always as (quantity * unit_price) stored;
