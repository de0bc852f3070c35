-- Ids come from the database and from nowhere else.
alter table coupons alter column id set generated always;
