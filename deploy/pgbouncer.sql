-- What pgbouncer.ini relies on. To be run by a superuser in the database `auth_dbname`; then: \password pgbouncer

-- Its whole right is to be told one role's verifier. With SCRAM, that is not enough to log in anywhere.
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

-- For each role that logs in through PgBouncer. These are its defaults in every session, and RESET leads back to them.
--
-- Ends what nobody can cancel. The longest statement that is not a mistake needs less.
alter role app set statement_timeout = '30s';
-- When a client goes in the middle of a statement, PgBouncer closes the session. A server that is busy does not
-- notice, unless it looks (PostgreSQL 14 or later, on Linux, macOS and the BSDs).
alter role app set client_connection_check_interval = '2s';
