-- The tables of db-events. A row of event_log_batches is what one append stored: many events cost one row, one index
-- entry and one statement.

create table event_logs (
    id bigint generated always as identity primary key,
    created_at timestamptz not null default now()
);

comment on table event_logs is 'Logs of events. Owned by db-events.';

create table event_log_batches (
    -- event_logs.id. Without a foreign key, whose check would lock a row of event_logs for each append.
    log bigint not null,
    -- The ids of its events. The primary key is the fence: of two writers that continue from the same tail, one fails.
    first bigint not null check (first >= 1),
    last bigint not null check (last >= first),
    -- How much text it holds, so that a page can be cut to size without reading it.
    bytes integer not null,
    -- One type for all of its events, or one for each.
    types text[] not null,
    data text[] not null,
    -- The log ends here.
    is_final boolean not null,
    at timestamptz not null default now(),
    primary key (log, first)
);

-- A batch of many lines is compressed. LZ4 does it four times as fast as the default, where the server was built with it
-- (14 or later, and most are).
do $$
begin
    alter table event_log_batches alter column data set compression lz4;
exception
    when feature_not_supported or syntax_error then null;
end
$$;

comment on table event_log_batches is 'What each append stored. Owned by db-events; read it through event_log_events.';

-- One row an event, for people with a SQL prompt.
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
