//! Who is heard of those who say where the database is.

use secrecy::ExposeSecret;

use super::super::{Setting, SettingSource, Values, keys};
use super::parts::{DIRECT, OPTIONS, PAIR, PAIR_PARAMETERS, PARTS, PASSWORD, URL, USER, is_pair, is_place};
use crate::config::parts;

/// Whether any database setting was given, complete or not.
#[must_use]
pub fn names_a_database(values: &Values) -> bool {
    let is_said = |part: &Setting| values.is_given(part.name) && !is_of_image(values, part);
    [&URL, &DIRECT].into_iter().chain(PARTS.iter().map(|(part, _)| *part)).any(is_said)
}

/// Whether a setting is heard as the others are: see [`database`](super::database).
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
        keys::is_heard(values, setting)
    }
}

/// Whose word holds of where the database is.
///
/// The source that is heard first and says where it is, by an address or by a host, a port or a database's name, is heard whole:
/// of a place that a lower source names, nothing is left. An address is completed by what it does not say, out of its own source,
/// a higher one, and libpq's variables; a higher source overrides what it says of the login.
pub(super) struct Heard {
    /// The address's parts, when it is what names the place.
    pub(super) address: Option<Vec<(String, String)>>,
    pub(super) parts: Vec<(&'static Setting, &'static str)>,
    /// The parts that the address's own source says otherwise.
    pub(super) twice: Vec<&'static Setting>,
    /// Whether the address past a pooler is heard.
    pub(super) direct: bool,
}

impl Heard {
    pub(super) fn of(values: &Values) -> Self {
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

    pub(super) fn hears(&self, setting: &Setting) -> bool {
        self.parts.iter().any(|(part, _)| part.name == setting.name)
    }
}

/// What the image `postgres` is told of its first role, in the environment of whoever is beside it: of itself, it says nothing of
/// a database of ours.
fn is_of_image(values: &Values, part: &Setting) -> bool {
    values.is_given(part.name)
        && values.source(part.name) == SettingSource::Environment
        && [USER.name, PASSWORD.name].contains(&part.name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::Config;
    use crate::settings::{DATABASE, Reader, database, direct};

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
}
