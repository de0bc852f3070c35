-- Invoice numbers come from a sequence of their own.
create sequence invoice_numbers start with 100000;
alter sequence invoice_numbers cache 20;
