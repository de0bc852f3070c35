-- Name the view like the page that shows it.
alter view order_summaries rename to order_overview;
