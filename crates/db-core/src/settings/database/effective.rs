//! Decides which of the given database settings take effect.

use secrecy::ExposeSecret;

use super::super::{Setting, SettingSource, Values, keys};
use super::parts::{DIRECT, OPTIONS, PAIR, PAIR_PARAMETERS, PARTS, PASSWORD, URL, USER, is_pair, is_place};
use crate::config::split_address;

/// Whether any database setting was given, complete or not. `POSTGRES_USER` and `POSTGRES_PASSWORD` in the environment do not
/// count: they may be those of the server's image.
#[must_use]
pub fn has_database(values: &Values) -> bool {
    let is_given = |part: &Setting| values.is_given(part.name) && !is_of_image(values, part);
    [&URL, &DIRECT].into_iter().chain(PARTS.iter().map(|(part, _)| *part)).any(is_given)
}

/// Whether the setting takes effect beside the others: see [`database`](super::database).
#[must_use]
pub fn takes_effect(values: &Values, setting: &Setting) -> bool {
    let effective = Effective::of(values);
    if setting.name == URL.name {
        effective.url.is_some() || !values.is_given(URL.name)
    } else if setting.name == DIRECT.name {
        effective.direct
    } else if PARTS.iter().any(|(part, _)| part.name == setting.name) {
        // The driver reads PGOPTIONS, whichever source names the database.
        let is_default = values.source(setting.name) == SettingSource::Default;
        let is_used = effective.uses(setting) || (is_default && effective.url.is_none());
        is_used && (has_database(values) || setting.name == OPTIONS.name)
    } else {
        keys::takes_effect(values, setting)
    }
}

/// The settings that take effect.
///
/// The highest source that names a place (a URL, or a host, a port or a database) decides the whole place; nothing of a lower
/// source's place is used. What a URL lacks is filled in from its own source, from higher sources and from libpq's variables. A
/// higher source overrides the URL's role, password and other login parameters.
pub(super) struct Effective {
    /// The URL's parameters, if the URL names the place.
    pub(super) url: Option<Vec<(String, String)>>,
    pub(super) parts: Vec<(&'static Setting, &'static str)>,
    /// Parts that the URL's own source gives with another value.
    pub(super) conflicts: Vec<&'static Setting>,
    /// Whether the direct address takes effect.
    pub(super) direct: bool,
}

impl Effective {
    pub(super) fn of(values: &Values) -> Self {
        let by_url = values.is_given(URL.name).then(|| values.source(URL.name));
        let places = PARTS.iter().filter(|(part, _)| is_place(part) && values.is_given(part.name));
        let by_parts = places.map(|(part, _)| values.source(part.name)).max();
        // Parts that only say how to log in name no place.
        let by = by_url.max(by_parts);
        let direct = !values.is_given(DIRECT.name) || by.is_none_or(|by| values.source(DIRECT.name) >= by);
        let mut effective = Self { url: None, parts: Vec::new(), conflicts: Vec::new(), direct };
        let found = |part: &Setting| values.found(part.name).is_some();
        match by_url.filter(|_| by_url == by) {
            Some(source) => effective.complete(values, source),
            None => effective.parts = PARTS.into_iter().filter(|(part, _)| found(part)).collect(),
        }
        if PAIR.iter().any(|part| values.is_given(part.name) && effective.uses(part)) {
            effective.parts.retain(|(part, _)| !is_pair(part) || values.is_given(part.name));
        }
        effective
    }

    /// Decides for each part beside a URL of that source.
    fn complete(&mut self, values: &Values, source: SettingSource) {
        let text =
            |setting: &Setting| values.found(setting.name)?.text.as_ref().map(ExposeSecret::expose_secret);
        let url = text(&URL).and_then(|text| split_address(text).ok()).unwrap_or_default();
        let url: Vec<_> = url.into_iter().filter_map(|(name, value)| Some((name, value.ok()?))).collect();
        let in_url = |parameter: &str| {
            let last = url.iter().rev().find(|(name, _)| name == parameter);
            // A URL without a port means 5432.
            last.map(|(_, value)| value.as_str()).or((parameter == "port").then_some("5432"))
        };
        let role = text(&USER).filter(|_| values.is_given(USER.name));
        let has_other_role = in_url("user").is_some_and(|user| role.is_some_and(|role| role != user));
        for (part, parameter) in PARTS {
            let Some(given) = values.found(part.name) else { continue };
            let is_given = values.is_given(part.name);
            let is_pair_in_url = is_pair(part) && PAIR_PARAMETERS.iter().any(|one| in_url(one).is_some());
            let of_image = is_of_image(values, part);
            match in_url(parameter) {
                _ if is_given && given.source < source => {}
                // The driver reads it, whatever the URL has.
                _ if !is_given && part.name == OPTIONS.name => self.parts.push((part, parameter)),
                _ if !is_given && is_pair_in_url => {}
                // The password belongs to another role.
                None if of_image && part.name == PASSWORD.name && has_other_role => {}
                None => self.parts.push((part, parameter)),
                Some(_) if !is_given => {}
                Some(value) if text(part) == Some(value) => {}
                Some(_) if of_image => {}
                Some(_) if given.source > source => self.parts.push((part, parameter)),
                Some(_) => self.conflicts.push(part),
            }
        }
        self.url = Some(url);
    }

    pub(super) fn uses(&self, setting: &Setting) -> bool {
        self.parts.iter().any(|(part, _)| part.name == setting.name)
    }
}

/// Whether the setting may be meant for the image `postgres`: its `POSTGRES_USER` and `POSTGRES_PASSWORD` also appear in the
/// environment of programs that run beside the server. They do not show that a database of ours is configured.
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

    type Given<'a> = (SettingSource, &'a str, &'a str);

    fn values(given: &[Given<'_>]) -> Values {
        let mut values = Values::new(DATABASE);
        for (source, name, text) in given {
            values.read(*source, |setting| (setting.name == *name).then(|| (*text).into()));
        }
        values
    }

    fn read(values: &Values) -> Result<Config, String> {
        let mut reader = Reader::new(values);
        let config = database(&mut reader);
        reader.finish().map_err(|error| error.to_string())?;
        Ok(config.expect("a config, or an error"))
    }

    /// The address and the password.
    fn leads(given: &[Given<'_>]) -> (String, String) {
        let config = read(&values(given)).expect("nothing is wrong");
        let shown = format!("{:?}", config.as_sqlx());
        let password = shown.split_once(" password: ").expect("a password").1.split(", ").next();
        (config.to_string(), password.unwrap_or_default().to_owned())
    }

    fn shown(values: &Values, name: &str) -> Option<String> {
        let setting = DATABASE.into_iter().find(|setting| setting.name == name).expect("a setting");
        values.shown(setting).filter(|_| takes_effect(values, setting))
    }

    const SOURCES: [SettingSource; 3] =
        [SettingSource::Program, SettingSource::Environment, SettingSource::Flag];

    fn pairs() -> impl Iterator<Item = (SettingSource, SettingSource)> {
        SOURCES
            .into_iter()
            .flat_map(|low| SOURCES.into_iter().filter(move |high| *high > low).map(move |high| (high, low)))
    }

    #[test]
    fn the_higher_of_two_sources_decides_the_whole_place() {
        for (high, low) in pairs() {
            let parts = |source| {
                [
                    (source, "postgres-host", "other"),
                    (source, "postgres-port", "6432"),
                    (source, "postgres-user", "else"),
                    (source, "postgres-database", "store"),
                ]
            };
            let mut given = parts(low).to_vec();
            given.push((low, "postgres-password", "of the other"));
            given.push((low, "postgres-sslmode", "disable"));
            given.push((high, "database-url", ADDRESS));
            assert_eq!(
                leads(&given),
                ("app@db:5432/shop".into(), "Some(\"hunter2\")".into()),
                "{high:?} {low:?}"
            );
            let values = values(&given);
            assert_eq!(shown(&values, "postgres-host"), None);
            assert_eq!(shown(&values, "postgres-sslmode"), None);
            assert_eq!(shown(&values, "database-url").as_deref(), Some("(hidden)"));

            let mut given = parts(high).to_vec();
            given.push((low, "database-url", ADDRESS));
            given.push((low, "database-url-direct", ADDRESS));
            assert_eq!(leads(&given), ("else@other:6432/store".into(), "None".into()), "{high:?} {low:?}");
            let values = self::values(&given);
            assert_eq!(shown(&values, "database-url"), None);
            assert_eq!(shown(&values, "postgres-host").as_deref(), Some("other"));
            assert!(
                direct(&mut Reader::new(&values)).is_none(),
                "the direct address leads to the other database"
            );
        }
    }

    #[test]
    fn a_direct_address_belongs_to_a_url_of_its_own_source_or_a_lower_one() {
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
    fn one_source_must_not_give_two_values() {
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
                let given = |text| [(source, "database-url", &*address), (source, part, text)];
                assert_eq!(leads(&given(same)).0, "app@db:5432/shop", "{source:?} {part}");

                let error = read(&values(&given(other))).expect_err(part);
                assert!(error.starts_with(&names(source, "database-url")), "{error}");
                assert!(error.contains(&names(source, part)) && !error.contains("hunter2"), "{error}");
            }
        }
    }

    #[test]
    fn a_url_takes_precedence_over_the_variables_of_the_servers_image_and_service() {
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
        let config = read(&values).expect("the URL takes effect");
        assert_eq!(config.to_string(), "app@db:5432/shop");
        assert!(format!("{:?}", config.as_sqlx()).contains("hunter2"));
        assert_eq!(shown(&values, "postgres-password"), None);

        let of_program = (SettingSource::Program, "database-url", ADDRESS);
        assert_eq!(leads(&[of_program, (env, "postgres-password", "other")]).1, "Some(\"hunter2\")");
        assert_eq!(
            leads(&[of_program, (SettingSource::Flag, "postgres-password", "other")]).1,
            "Some(\"other\")"
        );

        // Another role's password does not fill in for a missing one.
        let login = |user| {
            let address = (env, "database-url", "postgres://app@db/shop");
            leads(&[address, (env, "postgres-user", user), (env, "postgres-password", "pw")]).1
        };
        assert_eq!((&*login("postgres"), &*login("app")), ("None", "Some(\"pw\")"));

        // A service link is not a port beside parts either.
        let parts = BTreeMap::from([
            ("POSTGRES_DATABASE", "shop"),
            ("POSTGRES_USER", "app"),
            ("POSTGRES_PORT", "tcp://1.2.3.4:1"),
        ]);
        let mut values = Values::new(DATABASE);
        values.read_variables(|variable| parts.get(variable).map(Into::into));
        assert_eq!(read(&values).expect("a service link is ignored").to_string(), "app@127.0.0.1:5432/shop");
    }

    #[test]
    fn a_url_is_completed_and_a_higher_source_overrides_its_login() {
        for (high, low) in pairs() {
            let bare = "postgres://app@db.example/shop";
            let mode = |given: &[Given<'_>]| {
                let config = read(&values(given)).expect("nothing is wrong");
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
    fn libpqs_variables_fill_in_missing_settings_and_are_shown_by_their_names() {
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
        // Any given setting overrides them. The certificate and its key come from one source.
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
        assert_eq!(shown(&values, "postgres-options").as_deref(), Some("-c geqo=off"), "the driver reads it");
    }
}
