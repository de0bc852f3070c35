-- Two hints for the help pages, which quote commands.
create table help_pages (name text primary key, body text not null);
insert into help_pages values
    ('drop', 'drop table orders; truncate customers cascade; -- never do this'),
    ('index', $q$create index on orders (total); vacuum full orders;$q$);
/* alter table orders drop column total; */
