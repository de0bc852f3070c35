//! The settings of the database's address, and the address's parameters that they stand for.

use super::super::Setting;
use crate::config::LIBPQ;

pub(super) static URL: Setting = Setting {
    name: "database-url",
    value: "URL",
    default: None,
    help: "The database's address, postgres://role:password@host:port/database. It replaces the parts below.",
    change: "Always, in production.",
    is_secret: true,
    repeats: false,
};

pub(super) static DIRECT: Setting = Setting {
    name: "database-url-direct",
    value: "URL",
    default: None,
    help: "The address that bypasses a connection pooler such as PgBouncer, for sessions that need LISTEN or run migrations. Without \
           it, DATABASE_URL.",
    change: "Whenever DATABASE_URL leads through a pooler in transaction mode.",
    is_secret: true,
    repeats: false,
};

pub(super) static HOST: Setting = Setting {
    name: "postgres-host",
    value: "HOST",
    default: Some("127.0.0.1"),
    help: "The server's name or address, or the folder of its Unix socket.",
    change: "When the server is on another machine and DATABASE_URL is not set.",
    is_secret: false,
    repeats: false,
};

pub(super) static PORT: Setting = Setting {
    name: "postgres-port",
    value: "PORT",
    default: Some("5432"),
    help: "The server's port.",
    change: "When the server listens on another port.",
    is_secret: false,
    repeats: false,
};

pub(super) static USER: Setting = Setting {
    name: "postgres-user",
    value: "ROLE",
    default: None,
    help: "The role to log in as. Without it, PGUSER, else the operating system's user.",
    change: "Always: use a role of the service's own with the fewest rights it needs.",
    is_secret: false,
    repeats: false,
};

pub(super) static PASSWORD: Setting = Setting {
    name: "postgres-password",
    value: "PASSWORD",
    default: None,
    help: "The role's password. Without it, PGPASSWORD.",
    change: "When the server asks for one. Prefer the environment to the flag.",
    is_secret: true,
    repeats: false,
};

pub(super) static NAME: Setting = Setting {
    name: "postgres-database",
    value: "NAME",
    default: None,
    help: "The database's name.",
    change: "Always, if DATABASE_URL is not set.",
    is_secret: false,
    repeats: false,
};

pub(super) static SSLMODE: Setting = Setting {
    name: "postgres-sslmode",
    value: "MODE",
    default: None,
    help: "disable, allow, prefer, require, verify-ca or verify-full. Without it, verify-full for a server on another machine, \
           and prefer for a server on this machine. A Unix socket has no TLS.",
    change: "When the server has no verifiable certificate and you trust the network.",
    is_secret: false,
    repeats: false,
};

pub(super) static CA: Setting = Setting {
    name: "postgres-ca-cert",
    value: "FILE",
    default: None,
    help: "An authority to trust besides the operating system's, as PEM or a file path; system for the operating system's \
           only. Without it, PGSSLROOTCERT.",
    change: "When the server's certificate is signed by an authority of your own.",
    is_secret: false,
    repeats: false,
};

pub(super) static CERT: Setting = Setting {
    name: "postgres-client-cert",
    value: "FILE",
    default: None,
    help: "The client's certificate, as PEM or a file path. Without it and its key, PGSSLCERT.",
    change: "When the server asks for one (clientcert in pg_hba.conf).",
    is_secret: false,
    repeats: false,
};

pub(super) static KEY: Setting = Setting {
    name: "postgres-client-key",
    value: "FILE",
    default: None,
    help: "The key of the client's certificate, as PEM or a file path. Without both, PGSSLKEY.",
    change: "Together with POSTGRES_CLIENT_CERT.",
    is_secret: true,
    repeats: false,
};

pub(super) static OPTIONS: Setting = Setting {
    name: "postgres-options",
    value: "OPTIONS",
    default: None,
    help: "Server settings for each session, as -c name=value -c name=value. It replaces PGOPTIONS.",
    change: "When this service needs another value of a server setting, such as search_path, and it cannot be set for the role.",
    is_secret: false,
    repeats: false,
};

/// The settings of the database's address.
pub static DATABASE: [&Setting; 12] =
    [&URL, &DIRECT, &HOST, &PORT, &USER, &PASSWORD, &NAME, &SSLMODE, &CA, &CERT, &KEY, &OPTIONS];

/// The settings that `DATABASE_URL` replaces, in URL order, with the parameter that each stands for.
pub(super) static PARTS: [(&Setting, &str); 10] = [
    (&HOST, "host"),
    (&PORT, "port"),
    (&USER, "user"),
    (&PASSWORD, "password"),
    (&NAME, "dbname"),
    (&SSLMODE, "sslmode"),
    (&CA, "sslrootcert"),
    (&CERT, "sslcert"),
    (&KEY, "sslkey"),
    (&OPTIONS, "options"),
];

/// The settings for which libpq has a variable, with the variable's name.
pub(in crate::settings) fn libpq() -> impl Iterator<Item = (&'static Setting, &'static str)> {
    PARTS.iter().filter_map(|(part, parameter)| {
        LIBPQ.iter().find(|(of, _)| of == parameter).map(|(_, variable)| (*part, *variable))
    })
}

/// Whether the setting is part of the place, not of the login.
pub(super) fn is_place(part: &Setting) -> bool {
    [&HOST, &PORT, &NAME].iter().any(|place| place.name == part.name)
}

/// A certificate and its key, which must come from one source.
pub(super) static PAIR: [&Setting; 2] = [&CERT, &KEY];
pub(super) static PAIR_PARAMETERS: [&str; 2] = ["sslcert", "sslkey"];

pub(super) fn is_pair(setting: &Setting) -> bool {
    PAIR.iter().any(|part| part.name == setting.name)
}
