-- no-transaction
-- The events of 2026 were loaded beside; prove that they fit, then take them in.
alter table events_2026 add constraint events_2026_range
    check (created_at >= '2026-01-01 00:00:00+00' and created_at < '2027-01-01 00:00:00+00') not valid;
alter table events_2026 validate constraint events_2026_range;
alter table events attach partition events_2026
    for values from ('2026-01-01 00:00:00+00') to ('2027-01-01 00:00:00+00');
alter table events_2026 drop constraint events_2026_range;
