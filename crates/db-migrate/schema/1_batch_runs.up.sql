-- What batches have done, so that a run that was ended resumes. Owned by db-migrate.

create table batch_runs (
    -- What is done, and to which table.
    name text primary key,
    began_at timestamptz not null default now(),
    noted_at timestamptz not null default now(),
    -- Null while it runs, and after it was ended.
    finished_at timestamptz,
    -- The number of rows in the table, as the server estimated it at the beginning; null when the table was never analyzed.
    estimate bigint,
    rows_read bigint not null default 0,
    rows_written bigint not null default 0,
    rows_per_second double precision not null default 0,
    -- The ranges of the key, and how far each is done: [{"after": […], "to": […], "at": […], "is_done": false}, …]. A hint: what
    -- a row needs is seen in the row.
    ranges jsonb not null
);

comment on table batch_runs is 'Progress of re-keying and of other work in batches. Owned by db-migrate.';
