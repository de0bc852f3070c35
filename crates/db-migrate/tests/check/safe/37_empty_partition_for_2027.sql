-- A place for the events of 2027.
create table events_2027 (like events including all);
alter table events attach partition events_2027
    for values from ('2027-01-01 00:00:00+00') to ('2028-01-01 00:00:00+00');
