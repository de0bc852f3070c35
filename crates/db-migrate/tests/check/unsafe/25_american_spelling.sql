-- Use the American spelling everywhere.
alter type order_status rename value 'cancelled' to 'canceled';
