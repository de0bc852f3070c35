-- The builds, for people with a SQL prompt and for dashboards.

create or replace view build_overview as
select
    id,
    status,
    exit_code,
    created_at,
    ended_at,
    coalesce(took_ms, (extract(epoch from ended_at - created_at) * 1000)::bigint) as took_ms,
    -- The process of a running build says every 5 s that it is there.
    case when status = 'running' then now() - seen_at end as silent_for,
    log
from builds;

comment on view build_overview is 'The builds of buildwatch, without what they run.';
