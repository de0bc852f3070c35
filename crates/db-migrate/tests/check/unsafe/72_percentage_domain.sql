-- A type of our own for percentages.
create domain percentage as numeric(5, 2) check (value between 0 and 100);
alter table order_items add column discount percentage;
