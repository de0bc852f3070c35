-- The events of 2024 go to the archive.
alter table events detach partition events_2024;
