drop view event_log_events;
drop index event_log_batches_ends;
drop index event_log_batches_once;

alter table event_log_batches
    drop column versions,
    drop column writer,
    drop column sequence;

create view event_log_events as
select
    batch.log,
    batch.first + event.number - 1 as id,
    coalesce(batch.types[event.number], batch.types[1]) as type,
    event.data,
    batch.at
from event_log_batches as batch,
    unnest(batch.data) with ordinality as event (data, number);

comment on view event_log_events is 'The events of all logs, one row each. Owned by db-events.';
