//! PgBouncer's configuration file.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use crate::address;
use crate::error::Error;

/// Part of the socket's name only. PgBouncer's default.
pub(super) const PORT: u16 = 6432;

/// The configuration's file name.
pub(super) const FILE: &str = "pgbouncer.ini";

/// Settings of an included file that the kit overrides: the socket is the only way in, and the log is the only file written.
const TAKEN_BACK: [(&str, &str); 9] = [
    ("listen_addr", ""),
    ("logfile", ""),
    ("pidfile", ""),
    ("user", ""),
    ("auth_file", ""),
    ("client_tls_sslmode", "disable"),
    ("server_tls_ca_file", ""),
    ("server_tls_key_file", ""),
    ("server_tls_cert_file", ""),
];

/// The certificate files, by all names that sqlx knows: PgBouncer's setting, the address's parameters, the environment
/// variable.
const CERTIFICATES: [(&str, &[&str], &str); 3] = [
    ("server_tls_ca_file", &["sslrootcert", "ssl-root-cert", "ssl-ca"], "PGSSLROOTCERT"),
    ("server_tls_key_file", &["sslkey", "ssl-key"], "PGSSLKEY"),
    ("server_tls_cert_file", &["sslcert", "ssl-cert"], "PGSSLCERT"),
];

/// The parts of the configuration. Not `Debug`, since it may hold a password.
pub(super) struct Ini {
    included: Included,
    /// The connection string of every database of the server.
    database: String,
    settings: Vec<(String, String)>,
    /// Copies of files that the account may not be able to read, each with its setting.
    certificates: Vec<(&'static str, Vec<u8>)>,
}

impl Ini {
    /// `url` and `options` are the same address; each has parts that the other does not return.
    pub(super) fn new(
        url: &str,
        options: &PgConnectOptions,
        include: Option<&Path>,
        own: &[(String, String)],
    ) -> Result<Ini, Error> {
        let url = Url::parse(url).map_err(|error| Error::Address { why: error.to_string() })?;
        let socket = options.get_socket().map(|folder| folder.display().to_string());
        let is_local = socket.is_some();
        let mut database = format!(
            "* = host={} port={} user={}",
            quoted(&socket.unwrap_or_else(|| options.get_host().to_owned()))?,
            options.get_port(),
            quoted(options.get_username())?,
        );
        if let Some(password) = address::password(&url).or_else(|| env::var("PGPASSWORD").ok()) {
            database = format!("{database} password={}", quoted(&password)?);
        }
        let mode = if is_local { "disable" } else { ssl_mode(options.get_ssl_mode()) };
        let mut settings = vec![("server_tls_sslmode".to_owned(), mode.to_owned())];
        settings.extend(own.iter().cloned());
        Ok(Ini {
            included: match include {
                Some(path) => Included::read(&String::from_utf8_lossy(&read(path)?)),
                None => Included::default(),
            },
            database,
            settings,
            certificates: if is_local { Vec::new() } else { certificates(&url)? },
        })
    }

    /// The files to write into the folder.
    pub(super) fn files(&self, folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        let mut lines = self.included.others.clone();
        lines.extend(["[databases]".to_owned(), self.database.clone(), "[pgbouncer]".to_owned()]);
        lines.extend(self.included.settings.iter().cloned());
        let mut set = |name: &str, value: &str| lines.push(format!("{name} = {value}"));
        for (name, value) in TAKEN_BACK {
            set(name, value);
        }
        set("unix_socket_dir", &folder.display().to_string());
        set("unix_socket_mode", "0600");
        set("listen_port", &PORT.to_string());
        // The folder's permissions already keep other users out.
        set("auth_type", "any");
        set("pool_mode", "transaction");
        for (name, content) in &self.certificates {
            let path = folder.join(name);
            set(name, &path.display().to_string());
            files.push((path, content.clone()));
        }
        for (name, value) in &self.settings {
            set(name, value);
        }
        lines.push(String::new());
        files.push((folder.join(FILE), lines.join("\n").into_bytes()));
        files
    }
}

/// The lines of an included file, which are copied: PgBouncer's own `%include` does not work, since a second section
/// `[pgbouncer]` makes it forget the first.
#[derive(Default)]
struct Included {
    settings: Vec<String>,
    /// Lines of the other sections, with the sections' names.
    others: Vec<String>,
}

impl Included {
    fn read(text: &str) -> Included {
        let mut included = Included::default();
        let mut is_settings = false;
        for line in text.lines() {
            if line.trim_start().starts_with('[') {
                is_settings = line.trim() == "[pgbouncer]";
                if is_settings {
                    continue;
                }
            }
            let lines = if is_settings { &mut included.settings } else { &mut included.others };
            lines.push(line.to_owned());
        }
        included
    }
}

/// The certificates named by the address, or else by the environment, as sqlx reads them: PEM, or the path of a file.
fn certificates(url: &Url) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
    let mut found = Vec::new();
    for (setting, parameters, variable) in CERTIFICATES {
        let named = url.query_pairs().find(|(name, _)| parameters.contains(&&**name));
        let value = named.map(|(_, value)| value.into_owned()).or_else(|| env::var(variable).ok());
        match value {
            Some(text) if text.starts_with("-----BEGIN") => found.push((setting, text.into_bytes())),
            Some(path) if !path.is_empty() => found.push((setting, read(Path::new(&path))?)),
            _ => {}
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::PgBouncer { action: "read a certificate file", source })
}

/// Quoted as in libpq's connection strings, except that PgBouncer escapes a quote by doubling it.
fn quoted(value: &str) -> Result<String, Error> {
    if value.contains(['\n', '\r', '\0']) {
        return Err(Error::Address { why: "it has a line break, which PgBouncer cannot quote".into() });
    }
    Ok(format!("'{}'", value.replace('\'', "''")))
}

fn ssl_mode(mode: PgSslMode) -> &'static str {
    match mode {
        PgSslMode::Disable => "disable",
        PgSslMode::Allow => "allow",
        PgSslMode::Prefer => "prefer",
        PgSslMode::Require => "require",
        PgSslMode::VerifyCa => "verify-ca",
        PgSslMode::VerifyFull => "verify-full",
    }
}

#[cfg(test)]
mod tests {
    use super::{Included, quoted};

    #[test]
    fn settings_of_a_file_are_separated_from_its_other_lines() {
        let file = "; head\n[pgbouncer]\na = 1\n[databases]\nx = host=y\n [pgbouncer]\nb = 2\n";

        let included = Included::read(file);

        assert_eq!(included.settings, ["a = 1", "b = 2"]);
        assert_eq!(included.others, ["; head", "[databases]", "x = host=y"]);
    }

    #[test]
    fn a_quote_is_doubled_and_a_line_break_refused() {
        assert_eq!(quoted("it's").unwrap(), "'it''s'");
        assert!(quoted("a\nb").is_err());
    }
}
