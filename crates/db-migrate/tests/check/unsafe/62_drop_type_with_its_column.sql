-- The payment method is told by the payment provider now.
drop type payment_method cascade;
