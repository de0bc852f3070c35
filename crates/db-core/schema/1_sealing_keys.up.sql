-- The tables of db-core's sealed columns. No key is in them, unless it is wrapped by a root key.

create table sealing_keys (
    -- The id that each sealed value contains.
    id bytea primary key check (octet_length(id) = 4),
    -- Derived from the key, so that another key of the same id is noticed.
    check_value bytea not null check (octet_length(check_value) = 16),
    state text not null check (state in ('known', 'primary', 'retired', 'destroyed')),
    -- The key itself, sealed under a root key; null when processes are given the key.
    wrapped bytea,
    since timestamptz not null default clock_timestamp(),
    changed_by text not null
);

create unique index sealing_keys_one_primary on sealing_keys (state) where state = 'primary';

comment on table sealing_keys is 'The keys that sealed values name. Owned by db-core.';

-- Which process has which keys. A row counts until it expires, by the clock of this server.
create table sealing_key_holders (
    holder bytea primary key check (octet_length(holder) = 16),
    name text not null,
    keys bytea[] not null,
    seals_under bytea,
    since timestamptz not null default clock_timestamp(),
    expires timestamptz not null
);

comment on table sealing_key_holders is 'The processes that have keys of sealed values. Owned by db-core.';
