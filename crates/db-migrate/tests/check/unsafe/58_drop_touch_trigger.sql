-- The new release sets updated_at itself.
drop trigger orders_touch on orders;
drop function touch_updated_at();
