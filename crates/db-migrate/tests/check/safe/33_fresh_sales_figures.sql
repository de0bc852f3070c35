-- The dashboard should show today, without a pause.
refresh materialized view concurrently daily_sales;
