-- Sales by month for the board, computed once from the days.
create materialized view monthly_sales as
    select date_trunc('month', day::timestamp) as month, sum(revenue) as revenue
    from daily_sales
    group by 1;
create unique index monthly_sales_month_uidx on monthly_sales (month);
