//! Where the database is.

use secrecy::ExposeSecret;

use super::{Reader, Setting, SettingSource, Values};
use crate::config::{LIBPQ, parts};
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
           and prefer for one on this. A Unix socket has no TLS.",
    change: "When the server has no certificate that can be verified, in a network that you trust.",
    is_secret: false,
};

static CA: Setting = Setting {
    name: "postgres-ca-cert",
    value: "FILE",
    default: None,
    help: "The authority whose certificates are trusted beside the operating system's, as PEM or the path of a file; system for \
           those alone. Without it, PGSSLROOTCERT.",
    change: "When the server's certificate is signed by an authority of your own.",
    is_secret: false,
};

static CERT: Setting = Setting {
    name: "postgres-client-cert",
    value: "FILE",
    default: None,
    help: "The certificate to show to the server, as PEM or the path of a file. Without it and its key, PGSSLCERT.",
    change: "When the server asks for one (clientcert in pg_hba.conf).",
    is_secret: false,
};

static KEY: Setting = Setting {
    name: "postgres-client-key",
    value: "FILE",
    default: None,
    help: "The key of that certificate, as PEM or the path of a file. Without both, PGSSLKEY.",
    change: "Together with the certificate.",
    is_secret: true,
};

static OPTIONS: Setting = Setting {
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
static PARTS: [(&Setting, &str); 10] = [
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
pub(super) fn libpq() -> impl Iterator<Item = (&'static Setting, &'static str)> {
    PARTS.iter().filter_map(|(part, parameter)| {
        LIBPQ.iter().find(|(of, _)| of == parameter).map(|(_, variable)| (*part, *variable))
    })
}

/// Those that say where a database is, and not how to log in to it.
fn is_place(part: &Setting) -> bool {
    [&HOST, &PORT, &NAME].iter().any(|place| place.name == part.name)
}

/// What the image `postgres` is told of its first role, in the environment of whoever is beside it: of itself, it says nothing of
/// a database of ours.
fn is_of_image(values: &Values, part: &Setting) -> bool {
    values.is_given(part.name)
        && values.source(part.name) == SettingSource::Environment
        && [USER.name, PASSWORD.name].contains(&part.name)
}

/// Whether anybody says something of where the database is, be it enough or not.
#[must_use]
pub fn names_a_database(values: &Values) -> bool {
    let is_said = |part: &Setting| values.is_given(part.name) && !is_of_image(values, part);
    [&URL, &DIRECT].into_iter().chain(PARTS.iter().map(|(part, _)| *part)).any(is_said)
}

/// Whether a setting is heard as the others are: see [`database`].
#[must_use]
pub fn matters(values: &Values, setting: &Setting) -> bool {
    let heard = Heard::of(values);
    if setting.name == URL.name {
        heard.address.is_some() || !values.is_given(URL.name)
    } else if setting.name == DIRECT.name {
        heard.direct
    } else if PARTS.iter().any(|(part, _)| part.name == setting.name) {
        // The driver hears PGOPTIONS whoever names the database.
        let is_default = values.source(setting.name) == SettingSource::Default;
        let is_heard = heard.hears(setting) || (is_default && heard.address.is_none());
        is_heard && (names_a_database(values) || setting.name == OPTIONS.name)
    } else {
        super::keys::is_heard(values, setting)
    }
}

/// Whose word holds of where the database is.
///
/// The source that is heard first and says where it is, by an address or by a host, a port or a database's name, is heard whole:
/// of a place that a lower source names, nothing is left. An address is completed by what it does not say, out of its own source,
/// a higher one, and libpq's variables; a higher source overrides what it says of the login.
struct Heard {
    /// The address's parts, when it is what names the place.
    address: Option<Vec<(String, String)>>,
    parts: Vec<(&'static Setting, &'static str)>,
    /// The parts that the address's own source says otherwise.
    twice: Vec<&'static Setting>,
    direct: bool,
}

impl Heard {
    fn of(values: &Values) -> Self {
        let by_address = values.is_given(URL.name).then(|| values.source(URL.name));
        let places = PARTS.iter().filter(|(part, _)| is_place(part) && values.is_given(part.name));
        let by_parts = places.map(|(part, _)| values.source(part.name)).max();
        // What only says how to log in names no place.
        let by = by_address.max(by_parts);
        let direct = !values.is_given(DIRECT.name) || by.is_none_or(|by| values.source(DIRECT.name) >= by);
        let mut heard = Self { address: None, parts: Vec::new(), twice: Vec::new(), direct };
        let found = |part: &Setting| values.found(part.name).is_some();
        match by_address.filter(|_| by_address == by) {
            Some(source) => heard.complete(values, source),
            None => heard.parts = PARTS.into_iter().filter(|(part, _)| found(part)).collect(),
        }
        if PAIR.iter().any(|part| values.is_given(part.name) && heard.hears(part)) {
            heard.parts.retain(|(part, _)| !is_pair(part) || values.is_given(part.name));
        }
        heard
    }

    /// Looks at each part beside an address of that source.
    fn complete(&mut self, values: &Values, source: SettingSource) {
        let text =
            |setting: &Setting| values.found(setting.name)?.text.as_ref().map(ExposeSecret::expose_secret);
        let of_address = text(&URL).and_then(|text| parts(text).ok()).unwrap_or_default();
        let of_address: Vec<_> =
            of_address.into_iter().filter_map(|(name, value)| Some((name, value.ok()?))).collect();
        let said = |parameter: &str| {
            let last = of_address.iter().rev().find(|(name, _)| name == parameter);
            // A port is always said, by being left out.
            last.map(|(_, value)| value.as_str()).or((parameter == "port").then_some("5432"))
        };
        let role = text(&USER).filter(|_| values.is_given(USER.name));
        let has_other_role = said("user").is_some_and(|said| role.is_some_and(|role| role != said));
        for (part, parameter) in PARTS {
            let Some(given) = values.found(part.name) else { continue };
            let is_given = values.is_given(part.name);
            let is_pair_said = is_pair(part) && PAIR_PARAMETERS.iter().any(|one| said(one).is_some());
            let of_image = is_of_image(values, part);
            match said(parameter) {
                _ if is_given && given.source < source => {}
                // The driver hears it, whatever the address says.
                _ if !is_given && part.name == OPTIONS.name => self.parts.push((part, parameter)),
                _ if !is_given && is_pair_said => {}
                // The password of somebody else.
                None if of_image && part.name == PASSWORD.name && has_other_role => {}
                None => self.parts.push((part, parameter)),
                Some(_) if !is_given => {}
                Some(said) if text(part) == Some(said) => {}
                Some(_) if of_image => {}
                Some(_) if given.source > source => self.parts.push((part, parameter)),
                Some(_) => self.twice.push(part),
            }
        }
        self.address = Some(of_address);
    }

    fn hears(&self, setting: &Setting) -> bool {
        self.parts.iter().any(|(part, _)| part.name == setting.name)
    }
}

/// A certificate and its key, which come from one place.
static PAIR: [&Setting; 2] = [&CERT, &KEY];
static PAIR_PARAMETERS: [&str; 2] = ["sslcert", "sslkey"];

fn is_pair(setting: &Setting) -> bool {
    PAIR.iter().any(|part| part.name == setting.name)
}

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
        match parts(text) {
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
    use std::collections::BTreeMap;

    use super::*;

    const ADDRESS: &str = "postgres://app:hunter2@db/shop";

    type Said<'a> = (SettingSource, &'a str, &'a str);

    fn values(said: &[Said<'_>]) -> Values {
        let mut values = Values::new(DATABASE);
        for (source, name, text) in said {
            values.read(*source, |setting| (setting.name == *name).then(|| (*text).into()));
        }
        values
    }

    fn read(values: &Values) -> Result<Config, String> {
        let mut reader = Reader::new(values);
        let config = database(&mut reader);
        reader.finish().map_err(|error| error.to_string())?;
        Ok(config.expect("where there is none, that was found to be wrong"))
    }

    /// Where it leads, and with what password.
    fn leads(said: &[Said<'_>]) -> (String, String) {
        let config = read(&values(said)).expect("nothing is wrong");
        let shown = format!("{:?}", config.as_sqlx());
        let password = shown.split_once(" password: ").expect("a password").1.split(", ").next();
        (config.to_string(), password.unwrap_or_default().to_owned())
    }

    fn shown(values: &Values, name: &str) -> Option<String> {
        let setting = DATABASE.into_iter().find(|setting| setting.name == name).expect("a setting");
        values.shown(setting).filter(|_| matters(values, setting))
    }

    const SOURCES: [SettingSource; 3] =
        [SettingSource::Program, SettingSource::Environment, SettingSource::Flag];

    fn pairs() -> impl Iterator<Item = (SettingSource, SettingSource)> {
        SOURCES
            .into_iter()
            .flat_map(|low| SOURCES.into_iter().filter(move |high| *high > low).map(move |high| (high, low)))
    }

    #[test]
    fn of_two_sources_the_higher_one_says_where_the_database_is_and_is_heard_whole() {
        for (high, low) in pairs() {
            let parts = |source| {
                [
                    (source, "postgres-host", "other"),
                    (source, "postgres-port", "6432"),
                    (source, "postgres-user", "else"),
                    (source, "postgres-database", "store"),
                ]
            };
            let mut said = parts(low).to_vec();
            said.push((low, "postgres-password", "of the other"));
            said.push((low, "postgres-sslmode", "disable"));
            said.push((high, "database-url", ADDRESS));
            assert_eq!(
                leads(&said),
                ("app@db:5432/shop".into(), "Some(\"hunter2\")".into()),
                "{high:?} {low:?}"
            );
            let values = values(&said);
            assert_eq!(shown(&values, "postgres-host"), None);
            assert_eq!(shown(&values, "postgres-sslmode"), None);
            assert_eq!(shown(&values, "database-url").as_deref(), Some("(hidden)"));

            let mut said = parts(high).to_vec();
            said.push((low, "database-url", ADDRESS));
            said.push((low, "database-url-direct", ADDRESS));
            assert_eq!(leads(&said), ("else@other:6432/store".into(), "None".into()), "{high:?} {low:?}");
            let values = self::values(&said);
            assert_eq!(shown(&values, "database-url"), None);
            assert_eq!(shown(&values, "postgres-host").as_deref(), Some("other"));
            assert!(direct(&mut Reader::new(&values)).is_none(), "it leads to the other one");
        }
    }

    #[test]
    fn an_address_past_a_pooler_goes_with_an_address_of_its_own_source_or_a_lower_one() {
        for (high, low) in pairs() {
            let of = |url, past| {
                let values =
                    values(&[(url, "database-url", ADDRESS), (past, "database-url-direct", ADDRESS)]);
                (direct(&mut Reader::new(&values)).is_some(), shown(&values, "database-url-direct").is_some())
            };

            assert_eq!(of(high, low), (false, false), "{high:?} {low:?}");
            assert_eq!(of(low, high), (true, true));
            assert_eq!(of(high, high), (true, true));
        }
    }

    #[test]
    fn what_one_source_says_twice_is_refused_when_it_differs() {
        let names = |source: SettingSource, name: &str| match source {
            SettingSource::Flag => format!("--{name}"),
            SettingSource::Environment => name.to_ascii_uppercase().replace('-', "_"),
            _ => name.to_owned(),
        };
        let address = format!("{ADDRESS}?sslmode=require&options=-csearch_path%3Da");
        for source in SOURCES {
            for (part, same, other) in [
                ("postgres-host", "db", "hunter2"),
                ("postgres-port", "5432", "6432"),
                ("postgres-database", "shop", "hunter2"),
                ("postgres-sslmode", "require", "disable"),
                ("postgres-options", "-csearch_path=a", "-c search_path=hunter2"),
            ] {
                let said = |text| [(source, "database-url", &*address), (source, part, text)];
                assert_eq!(leads(&said(same)).0, "app@db:5432/shop", "{source:?} {part}");

                let error = read(&values(&said(other))).expect_err(part);
                assert!(error.starts_with(&names(source, "database-url")), "{error}");
                assert!(error.contains(&names(source, part)) && !error.contains("hunter2"), "{error}");
            }
        }
    }

    #[test]
    fn an_address_holds_beside_what_the_servers_image_and_its_service_have_in_the_environment() {
        let env = SettingSource::Environment;
        let variables = BTreeMap::from([
            ("DATABASE_URL", ADDRESS),
            ("POSTGRES_USER", "postgres"),
            ("POSTGRES_PASSWORD", "of the superuser"),
            ("POSTGRES_PORT", "tcp://10.0.0.1:5432"),
            ("POSTGRES_PORT_5432_TCP_ADDR", "10.0.0.1"),
            ("POSTGRES_SERVICE_HOST", "10.0.0.1"),
        ]);
        let mut values = Values::new(DATABASE);
        values.read_variables(|variable| variables.get(variable).map(Into::into));
        let config = read(&values).expect("the address holds");
        assert_eq!(config.to_string(), "app@db:5432/shop");
        assert!(format!("{:?}", config.as_sqlx()).contains("hunter2"));
        assert_eq!(shown(&values, "postgres-password"), None);

        let of_program = (SettingSource::Program, "database-url", ADDRESS);
        assert_eq!(leads(&[of_program, (env, "postgres-password", "other")]).1, "Some(\"hunter2\")");
        assert_eq!(
            leads(&[of_program, (SettingSource::Flag, "postgres-password", "other")]).1,
            "Some(\"other\")"
        );

        // Without a password of its own, the address is not given another role's.
        let login = |user| {
            let address = (env, "database-url", "postgres://app@db/shop");
            leads(&[address, (env, "postgres-user", user), (env, "postgres-password", "pw")]).1
        };
        assert_eq!((&*login("postgres"), &*login("app")), ("None", "Some(\"pw\")"));

        // Nor is a link a port when there are parts.
        let parts = BTreeMap::from([
            ("POSTGRES_DATABASE", "shop"),
            ("POSTGRES_USER", "app"),
            ("POSTGRES_PORT", "tcp://1.2.3.4:1"),
        ]);
        let mut values = Values::new(DATABASE);
        values.read_variables(|variable| parts.get(variable).map(Into::into));
        assert_eq!(read(&values).expect("a link is nothing").to_string(), "app@127.0.0.1:5432/shop");
    }

    #[test]
    fn an_address_is_completed_and_a_higher_source_overrides_the_login() {
        for (high, low) in pairs() {
            let bare = "postgres://app@db.example/shop";
            let mode = |said: &[Said<'_>]| {
                let config = read(&values(said)).expect("nothing is wrong");
                format!("{:?}", config.as_sqlx().get_ssl_mode())
            };
            assert_eq!(
                leads(&[(low, "database-url", bare), (high, "postgres-password", "pw")]).1,
                "Some(\"pw\")"
            );
            assert_eq!(
                leads(&[(low, "database-url", bare), (low, "postgres-password", "pw")]).1,
                "Some(\"pw\")"
            );
            assert_eq!(leads(&[(high, "database-url", bare), (low, "postgres-password", "pw")]).1, "None");
            let with_mode = "postgres://app@db.example/shop?sslmode=verify-ca";
            assert_eq!(
                mode(&[(low, "database-url", with_mode), (high, "postgres-sslmode", "require")]),
                "Require"
            );
            assert_eq!(
                mode(&[(high, "database-url", with_mode), (low, "postgres-sslmode", "require")]),
                "VerifyCa"
            );
        }
    }

    #[test]
    fn libpqs_variables_complete_what_nobody_says_and_are_shown_by_their_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let pem = folder.path().join("pem").display().to_string();
        std::fs::write(&pem, "-----BEGIN CERTIFICATE-----").expect("written");
        let variables = BTreeMap::from([
            ("PGUSER", "somebody"),
            ("PGPASSWORD", "hunter2"),
            ("PGSSLROOTCERT", &*pem),
            ("PGSSLCERT", &*pem),
            ("PGSSLKEY", &*pem),
            ("PGOPTIONS", "-c geqo=off"),
            ("PGHOST", "elsewhere"),
            ("PGPORT", "1"),
            ("PGDATABASE", "other"),
            ("PGSSLMODE", "disable"),
            ("PGAPPNAME", "me"),
        ]);
        let mut values = values(&[(SettingSource::Program, "database-url", "postgres://db.example/shop")]);
        values.read_variables(|variable| variables.get(variable).map(Into::into));

        let config = read(&values).expect("nothing is wrong");

        assert_eq!(config.to_string(), "somebody@db.example:5432/shop");
        let of_driver = format!("{:?}", config.as_sqlx());
        assert!(of_driver.contains("hunter2") && of_driver.contains("VerifyFull"), "{of_driver}");
        assert_eq!(of_driver.matches(&pem).count(), 3, "{of_driver}");
        assert!(!of_driver.contains("\"me\""), "{of_driver}");
        for (name, variable, value) in [
            ("postgres-user", "PGUSER", "somebody"),
            ("postgres-password", "PGPASSWORD", "(hidden)"),
            ("postgres-ca-cert", "PGSSLROOTCERT", &pem),
            ("postgres-client-cert", "PGSSLCERT", &pem),
            ("postgres-client-key", "PGSSLKEY", "(hidden)"),
            ("postgres-options", "PGOPTIONS", "-c geqo=off"),
        ] {
            let setting = DATABASE.into_iter().find(|setting| setting.name == name).expect("a setting");
            assert_eq!(shown(&values, name).as_deref(), Some(value), "{name}");
            assert_eq!(
                (values.known_as(setting), values.source(name)),
                (variable.into(), SettingSource::Environment)
            );
        }
        // What anybody says is heard before them; the certificate and its key come from one place.
        values.set(
            "database-url",
            format!("postgres://app:pw@db/shop?sslcert={pem}&sslkey={pem}&sslrootcert=system"),
        );
        assert_eq!(read(&values).expect("nothing is wrong").to_string(), "app@db:5432/shop");
        for name in [
            "postgres-user",
            "postgres-password",
            "postgres-ca-cert",
            "postgres-client-cert",
            "postgres-client-key",
        ] {
            assert_eq!(shown(&values, name), None, "{name}");
        }
        assert_eq!(shown(&values, "postgres-options").as_deref(), Some("-c geqo=off"), "the driver hears it");
    }

    #[test]
    fn a_line_break_at_the_end_is_of_the_file_it_came_from_but_a_password_keeps_its_own() {
        let of = |password| {
            read(&values(&[
                (SettingSource::Flag, "postgres-host", "db\n"),
                (SettingSource::Flag, "postgres-port", "6432\n"),
                (SettingSource::Flag, "postgres-user", "app\r\n"),
                (SettingSource::Flag, "postgres-database", "shop\n"),
                (SettingSource::Flag, "postgres-sslmode", "disable\n"),
                (SettingSource::Flag, "postgres-password", password),
            ]))
        };

        assert_eq!(of("pw").expect("nothing is wrong").to_string(), "app@db:6432/shop");
        let error = of("hunter2\n").expect_err("it would be refused by the driver");
        assert!(
            error.starts_with("--postgres-password cannot be used: ") && !error.contains("hunter2"),
            "{error}"
        );
    }
}
