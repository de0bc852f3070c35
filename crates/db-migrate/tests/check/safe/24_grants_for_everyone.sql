-- The report tool reads sales under its own role.
grant select on daily_sales to public;
grant usage on schema legacy to public;
