-- Callers should say which status an order has.
alter table orders alter column status drop default;
