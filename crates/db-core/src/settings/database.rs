//! Where the database is.

use secrecy::SecretString;

use super::{Reader, Setting, Source, Values};
use crate::{Config, ConfigError, Pooler};

static URL: Setting = Setting {
    name: "database-url",
    value: "URL",
    default: None,
    help: "The database's address, postgres://role:password@host:port/database. Instead of the parts that follow.",
    change: "Always, in production.",
    is_secret: true,
};

static DIRECT: Setting = Setting {
    name: "database-url-direct",
    value: "URL",
    default: None,
    help: "The address past a connection pooler such as PgBouncer: for what needs a session of its own (LISTEN, migrations). \
           Without it, the same as the other.",
    change: "Whenever DATABASE_URL leads through a pooler in transaction mode.",
    is_secret: true,
};

static HOST: Setting = Setting {
    name: "postgres-host",
    value: "HOST",
    default: Some("127.0.0.1"),
    help: "The server's name or address, or the folder of its Unix socket.",
    change: "When the server is elsewhere, and the address is not given whole.",
    is_secret: false,
};

static PORT: Setting = Setting {
    name: "postgres-port",
    value: "PORT",
    default: Some("5432"),
    help: "The server's port.",
    change: "When the server listens on another port.",
    is_secret: false,
};

static USER: Setting = Setting {
    name: "postgres-user",
    value: "ROLE",
    default: None,
    help: "The role to log in as. Without it, PGUSER, else the name of the operating system's user.",
    change: "Always: a role of the service's own, which owns no more than it needs.",
    is_secret: false,
};

static PASSWORD: Setting = Setting {
    name: "postgres-password",
    value: "PASSWORD",
    default: None,
    help: "The role's password. Without it, PGPASSWORD.",
    change: "When the server asks for one; better by the environment than by the flag.",
    is_secret: true,
};

static NAME: Setting = Setting {
    name: "postgres-database",
    value: "NAME",
    default: None,
    help: "The database's name.",
    change: "Always, if the address is not given whole.",
    is_secret: false,
};

static SSLMODE: Setting = Setting {
    name: "postgres-sslmode",
    value: "MODE",
    default: None,
    help: "disable, allow, prefer, require, verify-ca or verify-full. Without it, verify-full for a server on another machine, \
           and prefer for one on this.",
    change: "When the server has no certificate that can be verified, in a network that you trust.",
    is_secret: false,
};

static CA: Setting = Setting {
    name: "postgres-ca-cert",
    value: "FILE",
    default: None,
    help: "The authority whose certificates are trusted, as PEM or the path of a file. Without it, the operating system's.",
    change: "When the server's certificate is signed by an authority of your own.",
    is_secret: false,
};

static CERT: Setting = Setting {
    name: "postgres-client-cert",
    value: "FILE",
    default: None,
    help: "The certificate to show to the server, as PEM or the path of a file.",
    change: "When the server asks for one (clientcert in pg_hba.conf).",
    is_secret: false,
};

static KEY: Setting = Setting {
    name: "postgres-client-key",
    value: "FILE",
    default: None,
    help: "The key of that certificate, as PEM or the path of a file.",
    change: "Together with the certificate.",
    is_secret: true,
};

/// Where the database is.
pub static DATABASE: [&Setting; 11] =
    [&URL, &DIRECT, &HOST, &PORT, &USER, &PASSWORD, &NAME, &SSLMODE, &CA, &CERT, &KEY];

/// What an address says in one, in the order of its parts.
static PARTS: [&Setting; 9] = [&HOST, &PORT, &USER, &PASSWORD, &NAME, &SSLMODE, &CA, &CERT, &KEY];

/// Those that an address has as its parameters.
static PARAMETERS: [(&Setting, &str); 4] =
    [(&SSLMODE, "sslmode"), (&CA, "sslrootcert"), (&CERT, "sslcert"), (&KEY, "sslkey")];

/// Whether anybody says something of where the database is, be it enough or not.
#[must_use]
pub fn names_a_database(values: &Values) -> bool {
    values.is_given(URL.name)
        || values.is_given(DIRECT.name)
        || PARTS.iter().any(|part| values.is_given(part.name))
}

/// Whether a setting matters as the others are: the parts of an address only matter when they are what names the database.
#[must_use]
pub fn matters(values: &Values, setting: &Setting) -> bool {
    let is_part = PARTS.iter().any(|part| part.name == setting.name);
    !is_part || (names_a_database(values) && !values.is_given(URL.name))
}

/// Where the database is; `None` when something is wrong with that, or nobody says it.
pub fn database(reader: &mut Reader<'_>) -> Option<Config> {
    if reader.values().is_given(URL.name) {
        let twice: Vec<String> = PARTS
            .iter()
            .filter(|part| reader.values().source(part.name) != Source::Default)
            .map(|part| reader.known_as(part))
            .collect();
        if !twice.is_empty() {
            let parts = twice.join(" and ");
            reader.complain(
                &URL,
                format_args!("says where the database is, and so does {parts}: leave one out"),
            );
        }
        return address(reader, &URL);
    }

    if !reader.values().is_given(NAME.name) {
        reader.complain_of_all(
            "nothing says which database: set DATABASE_URL, or --postgres-database and what else differs of its parts",
        );
    }
    let host = reader.text(&HOST);
    let port = reader.number(&PORT, 1..=65535);
    let user = reader.text(&USER);
    let password = reader.text(&PASSWORD).map(SecretString::from);
    let name = reader.text(&NAME);
    let made = match (host, port.map(u16::try_from), name) {
        (Some(host), Some(Ok(port)), Some(name)) => {
            Some(Config::from_parts(host, port, user, password, name))
        }
        _ => None,
    };
    let mut config =
        made.and_then(|made| made.map_err(|error| reader.complain_of_all(error.to_string())).ok());
    // What is wrong with TLS is to be found all the same.
    let mut nowhere = Config::from_parts("localhost", 5432, Some("nobody"), None, "none").ok();
    for (setting, parameter) in PARAMETERS {
        let text = reader.text(setting);
        let config = config.as_mut().or(nowhere.as_mut());
        match text.zip(config).map(|(text, config)| config.set(parameter, text)) {
            Some(Err(ConfigError::Parameter { expected, .. })) => {
                reader.complain(setting, format_args!("must be {expected}"));
            }
            Some(Err(error)) => reader.complain(setting, format_args!("cannot be used: {error}")),
            Some(Ok(())) | None => {}
        }
    }
    for (one, other) in [(&CERT, &KEY), (&KEY, &CERT)] {
        if reader.values().is_given(one.name) && !reader.values().is_given(other.name) {
            reader.complain(one, format_args!("is of no use without --{}: give both", other.name));
        }
    }
    config
}

/// Where it is for what needs a session of its own; `None` when nobody says so, and it is the same.
pub fn direct(reader: &mut Reader<'_>) -> Option<Config> {
    let direct = address(reader, &DIRECT)?;
    if direct.pooler() != Pooler::None {
        reader.complain(&DIRECT, "must lead to the server itself, and says pgbouncer=true");
    }
    Some(direct)
}

/// Complains of an address that leads through a pooler when none is known that leads past it.
pub fn demand_direct(reader: &mut Reader<'_>, config: &Config) {
    if config.pooler() != Pooler::None && !reader.values().is_given(DIRECT.name) {
        reader.complain(
            &URL,
            "leads through a pooler (pgbouncer=true), and the bus and migrations need the server's own address: set \
             DATABASE_URL_DIRECT, too",
        );
    }
}

fn address(reader: &mut Reader<'_>, setting: &'static Setting) -> Option<Config> {
    match Config::read(reader.text(setting)?) {
        Ok(config) => Some(config),
        Err(wrong) => {
            for error in wrong {
                reader.complain(setting, format_args!("cannot be used: {error}"));
            }
            None
        }
    }
}
