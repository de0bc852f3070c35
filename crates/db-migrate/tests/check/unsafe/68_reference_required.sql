-- A check says already that a reference is there, so make it official.
alter table payments alter column reference set not null;
alter table payments drop constraint payments_reference_present;
