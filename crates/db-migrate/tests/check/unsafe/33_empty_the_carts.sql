-- Start the season with empty carts.
truncate table carts;
