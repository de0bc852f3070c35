-- pgbouncer.ini needs this. Run it as a superuser in the database `auth_dbname`; then: \password pgbouncer

-- The only right of this role is to read the verifier of one role at a time. With SCRAM, a verifier is not enough to log in.
create role pgbouncer login connection limit 10;
create schema pgbouncer;
grant usage on schema pgbouncer to pgbouncer;
create function pgbouncer.login(role text) returns table (name text, password text)
    language sql stable security definer set search_path = pg_catalog
    as $$
        select rolname::text, rolpassword
        from pg_authid
        where rolname = role and rolcanlogin and not rolsuper and not rolreplication
            and (rolvaliduntil is null or rolvaliduntil > now())
    $$;
revoke execute on function pgbouncer.login from public;
grant execute on function pgbouncer.login to pgbouncer;

-- For each role that logs in through PgBouncer. These are the role's defaults in every session, and RESET returns to them.
--
-- Ends a statement that the library cannot cancel behind a pooler. Set it to more than the longest intended statement needs.
alter role app set statement_timeout = '30s';
-- When a client leaves in the middle of a statement, PgBouncer closes the session. A busy server process notices that only with
-- this setting (PostgreSQL 14 or later, on Linux, macOS and the BSDs).
alter role app set client_connection_check_interval = '2s';
