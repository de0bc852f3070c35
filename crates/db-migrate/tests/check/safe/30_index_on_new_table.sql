-- Remember what people search for.
create table searches (
    id bigint generated always as identity,
    words text not null,
    searched_at timestamptz not null default now()
);
create index searches_words_idx on searches (words);
create unique index searches_id_uidx on searches (id);
alter table searches add constraint searches_words_present check (words <> '');
