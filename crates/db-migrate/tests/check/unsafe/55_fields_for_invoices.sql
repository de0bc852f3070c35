-- What the invoices need.
alter table orders
    add column invoice_no text,
    add column tax_rate numeric(4, 2) default 19,
    alter column currency type char(3);
