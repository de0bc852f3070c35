create table builds (
    id bigint generated always as identity primary key,
    name text not null
);
insert into builds (name) values ('first');
