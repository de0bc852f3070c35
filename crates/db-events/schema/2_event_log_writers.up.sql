-- Versions of what is in an event; who wrote a batch, so that one that is sent again is stored once; and which logs have ended,
-- for whoever removes old ones.

alter table event_log_batches
    -- One version for all of its events, or one for each; none for version 1.
    add column versions smallint[],
    -- The writer, and its number for the batch, where it has them.
    add column writer bigint,
    add column sequence bigint,
    add check ((writer is null) = (sequence is null));

create unique index event_log_batches_once on event_log_batches (log, writer, sequence) where writer is not null;

create index event_log_batches_ends on event_log_batches (at, log) where is_final;

create or replace view event_log_events as
select
    batch.log,
    batch.first + event.number - 1 as id,
    coalesce(batch.types[event.number], batch.types[1]) as type,
    event.data,
    batch.at,
    coalesce(batch.versions[event.number], batch.versions[1], 1::smallint) as version
from event_log_batches as batch,
    unnest(batch.data) with ordinality as event (data, number);
