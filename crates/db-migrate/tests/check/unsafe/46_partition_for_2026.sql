-- The events of 2026 were loaded beside; take them in.
alter table events attach partition events_2026
    for values from ('2026-01-01 00:00:00+00') to ('2027-01-01 00:00:00+00');
