-- The dashboard should show today.
refresh materialized view daily_sales;
