-- Not everyone should have access to prices.
revoke all on products from public;
