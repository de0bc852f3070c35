-- Notes of the support people, which know when they were changed.
create table support_notes (
    id bigint generated always as identity primary key,
    body text not null,
    updated_at timestamptz not null default clock_timestamp(),
    body_length integer generated always as (length(body)) stored
);
create trigger support_notes_touch before update on support_notes
    for each row execute function touch_updated_at();
alter table support_notes enable row level security;
