-- Roles and who may do what.
create table roles (id serial primary key, name text not null);
create table rights (role_id integer not null references roles (id), what text not null);
insert into roles (name) values ('clerk'), ('boss');
insert into rights values (1, 'look'), (2, 'change');
