-- Another default for the status.
alter table orders alter column status drop default;
alter table orders alter column status set default 'paid';
