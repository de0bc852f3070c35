-- A place for the number of the invoice.
alter table orders add column invoice_no text;
