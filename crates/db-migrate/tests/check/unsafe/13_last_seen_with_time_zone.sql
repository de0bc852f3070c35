-- last_seen_at was written in local Berlin time; keep it with its zone.
alter table customers
    alter column last_seen_at type timestamptz using last_seen_at at time zone 'Europe/Berlin';
