-- Trim the notes without touching updated_at.
alter table orders disable trigger orders_touch;
update orders set note = coalesce(trim(note), '');
alter table orders enable trigger orders_touch;
