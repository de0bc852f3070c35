//! The settings that say where the database is, and which parts of an address they are.

use super::super::Setting;
use crate::config::LIBPQ;

pub(super) static URL: Setting = Setting {
    name: "database-url",
    value: "URL",
    default: None,
    help: "The database's address, postgres://role:password@host:port/database. Instead of the parts that follow.",
    change: "Always, in production.",
    is_secret: true,
};

pub(super) static DIRECT: Setting = Setting {
    name: "database-url-direct",
    value: "URL",
    default: None,
    help: "The address past a connection pooler such as PgBouncer: for what needs a session of its own (LISTEN, migrations). \
           Without it, the same as the other.",
    change: "Whenever DATABASE_URL leads through a pooler in transaction mode.",
    is_secret: true,
};

pub(super) static HOST: Setting = Setting {
    name: "postgres-host",
    value: "HOST",
    default: Some("127.0.0.1"),
    help: "The server's name or address, or the folder of its Unix socket.",
    change: "When the server is elsewhere, and the address is not given whole.",
    is_secret: false,
};

pub(super) static PORT: Setting = Setting {
    name: "postgres-port",
    value: "PORT",
    default: Some("5432"),
    help: "The server's port.",
    change: "When the server listens on another port.",
    is_secret: false,
};

pub(super) static USER: Setting = Setting {
    name: "postgres-user",
    value: "ROLE",
    default: None,
    help: "The role to log in as. Without it, PGUSER, else the name of the operating system's user.",
    change: "Always: a role of the service's own, which owns no more than it needs.",
    is_secret: false,
};

pub(super) static PASSWORD: Setting = Setting {
    name: "postgres-password",
    value: "PASSWORD",
    default: None,
    help: "The role's password. Without it, PGPASSWORD.",
    change: "When the server asks for one; better by the environment than by the flag.",
    is_secret: true,
};

pub(super) static NAME: Setting = Setting {
    name: "postgres-database",
    value: "NAME",
    default: None,
    help: "The database's name.",
    change: "Always, if the address is not given whole.",
    is_secret: false,
};

pub(super) static SSLMODE: Setting = Setting {
    name: "postgres-sslmode",
    value: "MODE",
    default: None,
    help: "disable, allow, prefer, require, verify-ca or verify-full. Without it, verify-full for a server on another machine, \
           and prefer for one on this. A Unix socket has no TLS.",
    change: "When the server has no certificate that can be verified, in a network that you trust.",
    is_secret: false,
};

pub(super) static CA: Setting = Setting {
    name: "postgres-ca-cert",
    value: "FILE",
    default: None,
    help: "The authority whose certificates are trusted beside the operating system's, as PEM or the path of a file; system for \
           those alone. Without it, PGSSLROOTCERT.",
    change: "When the server's certificate is signed by an authority of your own.",
    is_secret: false,
};

pub(super) static CERT: Setting = Setting {
    name: "postgres-client-cert",
    value: "FILE",
    default: None,
    help: "The certificate to show to the server, as PEM or the path of a file. Without it and its key, PGSSLCERT.",
    change: "When the server asks for one (clientcert in pg_hba.conf).",
    is_secret: false,
};

pub(super) static KEY: Setting = Setting {
    name: "postgres-client-key",
    value: "FILE",
    default: None,
    help: "The key of that certificate, as PEM or the path of a file. Without both, PGSSLKEY.",
    change: "Together with the certificate.",
    is_secret: true,
};

pub(super) static OPTIONS: Setting = Setting {
    name: "postgres-options",
    value: "OPTIONS",
    default: None,
    help: "What each session is told when it begins, as -c name=value -c name=value. PGOPTIONS is heard in its place, and not \
           beside it.",
    change: "When a setting of the server's, such as search_path, is to be another for this service, and cannot be set for its role.",
    is_secret: false,
};

/// Where the database is.
pub static DATABASE: [&Setting; 12] =
    [&URL, &DIRECT, &HOST, &PORT, &USER, &PASSWORD, &NAME, &SSLMODE, &CA, &CERT, &KEY, &OPTIONS];

/// What an address says in one, in the order of its parts, and as which parameter.
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

/// The settings that libpq has a variable for, with its name.
pub(in crate::settings) fn libpq() -> impl Iterator<Item = (&'static Setting, &'static str)> {
    PARTS.iter().filter_map(|(part, parameter)| {
        LIBPQ.iter().find(|(of, _)| of == parameter).map(|(_, variable)| (*part, *variable))
    })
}

/// Whether it says where a database is, and not how to log in to it.
pub(super) fn is_place(part: &Setting) -> bool {
    [&HOST, &PORT, &NAME].iter().any(|place| place.name == part.name)
}

/// A certificate and its key, which come from one place.
pub(super) static PAIR: [&Setting; 2] = [&CERT, &KEY];
pub(super) static PAIR_PARAMETERS: [&str; 2] = ["sslcert", "sslkey"];

pub(super) fn is_pair(setting: &Setting) -> bool {
    PAIR.iter().any(|part| part.name == setting.name)
}
