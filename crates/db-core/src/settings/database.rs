//! Builds the database's address from the settings.

use self::effective::Effective;
use self::parts::{
    CERT, DIRECT, HOST, KEY, NAME, OPTIONS, PARTS, PASSWORD, PORT, SSLMODE, URL, USER, is_place,
};
use super::{Reader, Setting};
use crate::config::{LIBPQ, split_address};
use crate::{Config, ConfigError, Pooler};

mod effective;
mod parts;

pub use self::effective::{has_database, takes_effect};
pub use self::parts::DATABASE;
pub(super) use self::parts::libpq;

/// The database's address. `None` when it is wrong, which adds an error to the reader, or when no setting gives one.
///
/// The address is one URL or a set of parts (host, port, database and others). The highest source that names a place (a URL, or
/// a host, a port or a database) decides the place, and the places of lower sources are ignored. A source that gives a URL and a
/// different part is an error, with one exception: `POSTGRES_USER` and `POSTGRES_PASSWORD` beside a URL are taken as those of the
/// server's image, and ignored.
pub fn database(reader: &mut Reader<'_>) -> Option<Config> {
    let effective = Effective::of(reader.values());
    let before = reader.findings.len();
    complain_of_conflicts(reader, &effective);
    let mut config = Config::blank();
    if effective.url.is_some() {
        let text = reader.text(&URL)?;
        match split_address(text) {
            Err(error) => {
                reader.complain(&URL, format_args!("cannot be used: {error}"));
                return None;
            }
            Ok(parts) => {
                let is_overridden =
                    |name: &str| effective.parts.iter().any(|(_, parameter)| *parameter == name);
                for (name, value) in parts.into_iter().filter(|(name, _)| !is_overridden(name)) {
                    if let Err(error) = value.and_then(|value| config.set(&name, &value)) {
                        reader.complain(&URL, format_args!("cannot be used: {error}"));
                    }
                }
            }
        }
    } else {
        if !reader.values().is_given(NAME.name) {
            let instead = if reader.values().is_given(URL.name) {
                let url = reader.known_as(&URL);
                format!("; {url} is ignored, since a higher source names a part of the address")
            } else {
                String::new()
            };
            reader.complain_of_all(format!(
                "no database is configured: set DATABASE_URL, or --postgres-database and the other parts that differ from \
                 their defaults{instead}"
            ));
        }
        if let Some(host) = HOST.default {
            // The default is valid.
            config.set("host", host).ok();
        }
    }
    let mut all_read = true;
    for (part, parameter) in &effective.parts {
        all_read &= read_part(reader, &mut config, part, parameter).is_some();
    }
    let mut errors = Vec::new();
    config.check(&mut errors);
    // A wrong value of libpq's variable was already reported with its part.
    let is_reported = |error: &ConfigError| {
        matches!(error, ConfigError::Environment { variable, .. }
            if effective.parts.iter().any(|(part, of)| part.name != OPTIONS.name && LIBPQ.contains(&(*of, *variable))))
    };
    for error in
        errors.into_iter().filter(|_| all_read || effective.url.is_some()).filter(|it| !is_reported(it))
    {
        complain_of_whole(reader, &effective, &error);
    }
    (reader.findings.len() == before).then_some(config)
}

fn complain_of_conflicts(reader: &mut Reader<'_>, effective: &Effective) {
    let source = reader.values().source(URL.name);
    let names = |reader: &Reader<'_>, of_place: bool| -> Vec<String> {
        let parts = PARTS.iter().map(|(part, _)| *part).filter(|part| is_place(part) == of_place);
        let its = parts.filter(|part| {
            if of_place {
                reader.values().is_given(part.name) && reader.values().source(part.name) == source
            } else {
                effective.conflicts.iter().any(|conflict| conflict.name == part.name)
            }
        });
        its.map(|part| reader.known_as(part)).collect()
    };
    if effective.conflicts.iter().any(|part| is_place(part)) {
        let parts = names(reader, true).join(" and ");
        reader.complain(
            &URL,
            format_args!("conflicts with {parts}, since each gives the place of the database: remove one"),
        );
    }
    let others = names(reader, false);
    if !others.is_empty() {
        let parts = others.join(" and ");
        reader.complain(&URL, format_args!("and {parts} give different values: remove one"));
    }
}

fn read_part(
    reader: &mut Reader<'_>,
    config: &mut Config,
    part: &'static Setting,
    parameter: &str,
) -> Option<()> {
    let text = match part.name {
        _ if part.name == PORT.name => reader.number(part, 1..=65535)?.to_string(),
        // The driver reads PGOPTIONS by itself.
        _ if part.name == OPTIONS.name && !reader.values().is_given(part.name) => return Some(()),
        _ => reader.text(part)?.to_owned(),
    };
    match config.set(parameter, &text) {
        Ok(()) => return Some(()),
        Err(ConfigError::Parameter { expected, .. }) => {
            reader.complain(part, format_args!("must be {expected}"));
        }
        Err(error @ ConfigError::Host(_)) => reader.complain_of_all(error.to_string()),
        Err(error) => reader.complain(part, format_args!("cannot be used: {error}")),
    }
    None
}

/// Reports an error of the whole address under the name of the setting that caused it.
fn complain_of_whole(reader: &mut Reader<'_>, effective: &Effective, error: &ConfigError) {
    let part = match error {
        ConfigError::Database if effective.url.is_none() && !reader.values().is_given(NAME.name) => {
            return;
        }
        ConfigError::Password => Some(&PASSWORD),
        ConfigError::Role => Some(&USER),
        ConfigError::Parameter { parameter: "sslkey", .. } => Some(&CERT),
        ConfigError::Parameter { parameter: "sslcert", .. } => Some(&KEY),
        ConfigError::Parameter { parameter: "sslmode", .. } => Some(&SSLMODE),
        ConfigError::Refused { parameter: "options", .. } => Some(&OPTIONS),
        _ => None,
    };
    let other = match error {
        ConfigError::Parameter { parameter: "sslkey", .. } => Some(&KEY),
        ConfigError::Parameter { parameter: "sslcert", .. } => Some(&CERT),
        _ => None,
    };
    match (part.filter(|part| effective.uses(part)), other, error) {
        (Some(part), Some(other), _) => {
            reader.complain(part, format_args!("needs --{}, too: give both", other.name));
        }
        (Some(part), None, ConfigError::Parameter { expected, .. }) => {
            reader.complain(part, format_args!("must be {expected}"));
        }
        (Some(part), ..) => reader.complain(part, format_args!("cannot be used: {error}")),
        (None, _, ConfigError::Environment { .. }) => reader.complain_of_all(error.to_string()),
        (None, ..) if effective.url.is_some() => {
            reader.complain(&URL, format_args!("cannot be used: {error}"));
        }
        (None, ..) => reader.complain_of_all(error.to_string()),
    }
}

/// The address for sessions that must not go through a pooler. `None` when no setting gives one, so that it is the same as the
/// database's. A direct address from a source below that of the database's address is ignored, since it leads to another database.
pub fn direct(reader: &mut Reader<'_>) -> Option<Config> {
    if !Effective::of(reader.values()).direct {
        return None;
    }
    let text = reader.text(&DIRECT)?;
    let direct = match Config::read(text) {
        Ok(direct) => direct,
        Err(wrong) => {
            for error in wrong {
                reader.complain(&DIRECT, format_args!("cannot be used: {error}"));
            }
            return None;
        }
    };
    if direct.pooler() != Pooler::None {
        reader.complain(&DIRECT, "must lead to the server itself, but has pgbouncer=true");
    }
    Some(direct)
}

/// Adds an error when the database's address leads through a pooler and no direct address is given.
pub fn require_direct(reader: &mut Reader<'_>, config: &Config) {
    let effective = Effective::of(reader.values());
    if config.pooler() == Pooler::None || (reader.values().is_given(DIRECT.name) && effective.direct) {
        return;
    }
    reader.complain(
        &URL,
        "leads through a pooler (pgbouncer=true), but the bus and migrations need the server's own address: set \
         DATABASE_URL_DIRECT, too",
    );
}

#[cfg(test)]
mod tests {
    use super::super::{SettingSource, Values};
    use super::*;

    #[test]
    fn a_line_break_at_the_end_is_removed_except_from_a_password() {
        let of = |password| {
            let given = [
                ("postgres-host", "db\n"),
                ("postgres-port", "6432\n"),
                ("postgres-user", "app\r\n"),
                ("postgres-database", "shop\n"),
                ("postgres-sslmode", "disable\n"),
                ("postgres-password", password),
            ];
            let mut values = Values::new(DATABASE);
            values.read(SettingSource::Flag, |setting| {
                given.iter().find(|(name, _)| *name == setting.name).map(|(_, text)| text.into())
            });
            let mut reader = Reader::new(&values);
            let config = database(&mut reader);
            reader.finish().map(|()| config).map_err(|error| error.to_string())
        };

        let config = of("pw").expect("nothing is wrong").expect("a place");
        assert_eq!(config.to_string(), "app@db:6432/shop");
        let error = of("hunter2\n").expect_err("the driver would refuse it");
        assert!(
            error.starts_with("--postgres-password cannot be used: ") && !error.contains("hunter2"),
            "{error}"
        );
    }
}
