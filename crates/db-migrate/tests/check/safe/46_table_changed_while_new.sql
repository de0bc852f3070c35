-- A table for invoices, grown in a few steps before anyone has seen it.
create table invoice_drafts (id integer, no varchar(10), obsolete text);
insert into invoice_drafts select n, 'D' || n from generate_series(1, 50) n;
alter table invoice_drafts alter column id type bigint, alter column no type text;
alter table invoice_drafts drop column obsolete;
alter table invoice_drafts add primary key (id);
alter table invoice_drafts rename to invoices;
