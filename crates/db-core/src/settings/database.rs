//! Where the database is, made of what was given.

use self::heard::Heard;
use self::parts::{
    CERT, DIRECT, HOST, KEY, NAME, OPTIONS, PARTS, PASSWORD, PORT, SSLMODE, URL, USER, is_place,
};
use super::{Reader, Setting};
use crate::config::{LIBPQ, parts as taken_apart};
use crate::{Config, ConfigError, Pooler};

mod heard;
mod parts;

pub use self::heard::{matters, names_a_database};
pub use self::parts::DATABASE;
pub(super) use self::parts::libpq;

/// Where the database is; `None` when something is wrong with that, or nobody says it.
///
/// Said by an address or by its parts. Sources are compared with each other: the highest that names a place (an address, or a
/// host, a port or a database) is heard, and no lower one's place is. What the same source says twice, differently, is wrong; but
/// `POSTGRES_USER` and `POSTGRES_PASSWORD` beside an address that says otherwise are taken for those of the server's image.
pub fn database(reader: &mut Reader<'_>) -> Option<Config> {
    let heard = Heard::of(reader.values());
    let before = reader.findings.len();
    complain_of_twice(reader, &heard);
    let mut config = Config::blank();
    if heard.address.is_some() {
        let text = reader.text(&URL)?;
        match taken_apart(text) {
            Err(error) => {
                reader.complain(&URL, format_args!("cannot be used: {error}"));
                return None;
            }
            Ok(parts) => {
                let is_overridden = |name: &str| heard.parts.iter().any(|(_, parameter)| *parameter == name);
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
                format!("; {url} is not heard, since what is said of the place is above it")
            } else {
                String::new()
            };
            reader.complain_of_all(format!(
                "nothing says which database: set DATABASE_URL, or --postgres-database and what else differs of its \
                 parts{instead}"
            ));
        }
        if let Some(host) = HOST.default {
            // It can be used.
            config.set("host", host).ok();
        }
    }
    let mut all_read = true;
    for (part, parameter) in &heard.parts {
        all_read &= read_part(reader, &mut config, part, parameter).is_some();
    }
    let mut wrong = Vec::new();
    config.check(&mut wrong);
    // What could not be read is said already, and what libpq's variables said was a part.
    let was_part = |error: &ConfigError| {
        matches!(error, ConfigError::Environment { variable, .. }
            if heard.parts.iter().any(|(part, of)| part.name != OPTIONS.name && LIBPQ.contains(&(*of, *variable))))
    };
    for error in wrong.into_iter().filter(|_| all_read || heard.address.is_some()).filter(|it| !was_part(it))
    {
        complain_of_whole(reader, &heard, &error);
    }
    (reader.findings.len() == before).then_some(config)
}

fn complain_of_twice(reader: &mut Reader<'_>, heard: &Heard) {
    let source = reader.values().source(URL.name);
    let names = |reader: &Reader<'_>, of_place: bool| -> Vec<String> {
        let parts = PARTS.iter().map(|(part, _)| *part).filter(|part| is_place(part) == of_place);
        let its = parts.filter(|part| {
            if of_place {
                reader.values().is_given(part.name) && reader.values().source(part.name) == source
            } else {
                heard.twice.iter().any(|twice| twice.name == part.name)
            }
        });
        its.map(|part| reader.known_as(part)).collect()
    };
    if heard.twice.iter().any(|part| is_place(part)) {
        let parts = names(reader, true).join(" and ");
        reader.complain(&URL, format_args!("says where the database is, and so does {parts}: leave one out"));
    }
    let others = names(reader, false);
    if !others.is_empty() {
        let parts = others.join(" and ");
        reader.complain(&URL, format_args!("and {parts} say different things: leave one out"));
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
        // The driver hears it by itself.
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

/// Says what is wrong with the whole by the name of what says it.
fn complain_of_whole(reader: &mut Reader<'_>, heard: &Heard, error: &ConfigError) {
    let part = match error {
        ConfigError::Database if heard.address.is_none() && !reader.values().is_given(NAME.name) => return,
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
    match (part.filter(|part| heard.hears(part)), other, error) {
        (Some(part), Some(other), _) => {
            reader.complain(part, format_args!("is of no use without --{}: give both", other.name));
        }
        (Some(part), None, ConfigError::Parameter { expected, .. }) => {
            reader.complain(part, format_args!("must be {expected}"));
        }
        (Some(part), ..) => reader.complain(part, format_args!("cannot be used: {error}")),
        (None, _, ConfigError::Environment { .. }) => reader.complain_of_all(error.to_string()),
        (None, ..) if heard.address.is_some() => {
            reader.complain(&URL, format_args!("cannot be used: {error}"));
        }
        (None, ..) => reader.complain_of_all(error.to_string()),
    }
}

/// Where it is for what needs a session of its own; `None` when nobody says so, and it is the same. An address from below the one
/// that names the database is not heard: it leads to another.
pub fn direct(reader: &mut Reader<'_>) -> Option<Config> {
    if !Heard::of(reader.values()).direct {
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
        reader.complain(&DIRECT, "must lead to the server itself, and says pgbouncer=true");
    }
    Some(direct)
}

/// Complains of an address that leads through a pooler when none is known that leads past it.
pub fn demand_direct(reader: &mut Reader<'_>, config: &Config) {
    let heard = Heard::of(reader.values());
    if config.pooler() == Pooler::None || (reader.values().is_given(DIRECT.name) && heard.direct) {
        return;
    }
    reader.complain(
        &URL,
        "leads through a pooler (pgbouncer=true), and the bus and migrations need the server's own address: set \
         DATABASE_URL_DIRECT, too",
    );
}

#[cfg(test)]
mod tests {
    use super::super::{SettingSource, Values};
    use super::*;

    #[test]
    fn a_line_break_at_the_end_is_of_the_file_it_came_from_but_a_password_keeps_its_own() {
        let of = |password| {
            let said = [
                ("postgres-host", "db\n"),
                ("postgres-port", "6432\n"),
                ("postgres-user", "app\r\n"),
                ("postgres-database", "shop\n"),
                ("postgres-sslmode", "disable\n"),
                ("postgres-password", password),
            ];
            let mut values = Values::new(DATABASE);
            values.read(SettingSource::Flag, |setting| {
                said.iter().find(|(name, _)| *name == setting.name).map(|(_, text)| text.into())
            });
            let mut reader = Reader::new(&values);
            let config = database(&mut reader);
            reader.finish().map(|()| config).map_err(|error| error.to_string())
        };

        let config = of("pw").expect("nothing is wrong").expect("a place");
        assert_eq!(config.to_string(), "app@db:6432/shop");
        let error = of("hunter2\n").expect_err("it would be refused by the driver");
        assert!(
            error.starts_with("--postgres-password cannot be used: ") && !error.contains("hunter2"),
            "{error}"
        );
    }
}
