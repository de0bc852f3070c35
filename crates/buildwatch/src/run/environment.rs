//! The environment variables that a command does not get.
//!
//! A command is foreign code, and its output is shown to others. It gets buildwatch's environment without what concerns
//! buildwatch itself: secret settings, libpq's variables, and those of a service manager.

use std::ffi::{OsStr, OsString};

use db_layer::Settings;

/// Variables of a service manager for its service: with them, a command could act in the service's name.
const SERVICE: [&str; 7] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "CREDENTIALS_DIRECTORY",
];

/// The names of this process's variables that a command does not get.
pub(crate) fn kept_back() -> impl Iterator<Item = OsString> {
    let secrets = secrets();
    std::env::vars_os().filter(move |(name, value)| is_kept_back(&secrets, name, value)).map(|(name, _)| name)
}

/// Settings that hold secrets, by their names in the environment.
fn secrets() -> Vec<String> {
    let settings = Settings::default();
    settings
        .effective()
        .filter(|(setting, ..)| setting.is_secret)
        .map(|(setting, ..)| setting.variable())
        .collect()
}

fn is_kept_back(secrets: &[String], name: &OsStr, value: &OsStr) -> bool {
    let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
    // A secret's file or descriptor is given by the same name with a suffix.
    let base = name.strip_suffix("_FILE").or_else(|| name.strip_suffix("_FD")).unwrap_or(&name);
    secrets.iter().any(|secret| secret == base)
        || name.starts_with("PG")
        || SERVICE.contains(&&*name)
        || has_database_password(&value)
}

/// Whether a value is a database's address with a password, as a URL or in libpq's keyword form.
fn has_database_password(value: &str) -> bool {
    let Some((scheme, rest)) = value.split_once("://") else {
        let says = |key: &str| value.split_whitespace().any(|word| word.starts_with(key));
        return says("password=")
            && ["host=", "hostaddr=", "dbname=", "user=", "service="].into_iter().any(says);
    };
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    // A password may hold an unescaped `@` or `/`.
    let has_userinfo = address.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
    scheme.to_ascii_lowercase().contains("postgres")
        && (has_userinfo || query.split('&').any(|parameter| parameter.starts_with("password=")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_gets_everything_but_what_is_ours() {
        let secrets = secrets();
        for (name, value) in [
            ("ENCRYPTION_KEY_BASE64", "c2VjcmV0"),
            ("OLD_ENCRYPTION_KEY_HEX", "00"),
            ("ENCRYPTION_KEY_FILE", "/run/secrets/key"),
            ("POSTGRES_PASSWORD", "hunter2"),
            ("POSTGRES_PASSWORD_FD", "3"),
            ("POSTGRES_CLIENT_KEY", "/etc/key.pem"),
            ("DATABASE_URL", "postgres:///shop"),
            ("DATABASE_URL_DIRECT", "postgres:///shop"),
            ("PGPASSWORD", "hunter2"),
            ("PGPASSFILE", "/home/ada/.pgpass"),
            ("PGSERVICE", "shop"),
            ("NOTIFY_SOCKET", "/run/systemd/notify"),
            ("LISTEN_FDS", "1"),
            ("CREDENTIALS_DIRECTORY", "/run/credentials/buildwatch.service"),
            ("TEST_DATABASE", "postgres://app:hunter2@db/shop"),
            ("TEST_DATABASE", "PostgreSQL+psycopg://app:hun@ter/2@db/shop"),
            ("SQLX", "jdbc:postgresql://db/shop?user=app&password=hunter2"),
            ("CONNINFO", "host=db user=app password=hunter2"),
        ] {
            assert!(is_kept_back(&secrets, name.as_ref(), value.as_ref()), "{name}={value}");
        }
        for (name, value) in [
            ("PATH", "/bin"),
            ("HOME", "/home/ada"),
            ("POSTGRES_HOST", "db"),
            ("API_MAX_CONNS", "7"),
            ("BUILDWATCH_LOG", "debug"),
            ("TEST_DATABASE", "postgres://app@db/shop"),
            ("HOMEPAGE", "https://ada:lovelace@example.org/"),
            ("NOTE", "password=hunter2"),
            ("LOG_FILE", "/tmp/log"),
        ] {
            assert!(!is_kept_back(&secrets, name.as_ref(), value.as_ref()), "{name}={value}");
        }
    }
}
