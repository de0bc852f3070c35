//! The settings of a service: flags, environment variables, and values from the program.
//!
//! A [`Setting`] is one row of a table that its module owns. Help texts, variable names and the guide are generated from it.
//! [`Values`] holds the given values with their sources. A [`Reader`] parses them and collects all errors, so that one
//! [`SettingsError`] reports everything.
//!
//! ```
//! use db_core::settings::{DATABASE, Reader, SettingSource, Values, database};
//!
//! let mut values = Values::new(DATABASE);
//! values.set("postgres-host", "db.example");
//! values.set("postgres-user", "app");
//! values.set("postgres-database", "shop");
//! let mut reader = Reader::new(&values);
//! let config = database(&mut reader);
//! reader.finish()?;
//! assert_eq!(config.expect("nothing was wrong").to_string(), "app@db.example:5432/shop");
//! assert_eq!(values.source("postgres-port"), SettingSource::Default);
//! # Ok::<_, db_core::settings::SettingsError>(())
//! ```

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::ops::RangeInclusive;

use secrecy::{ExposeSecret, SecretString};

mod database;
#[cfg(feature = "clap")]
mod flags;
mod keys;
mod pools;

pub use database::{DATABASE, database, direct, has_database, require_direct, takes_effect};
pub use keys::{KEYS, has_key, key_use, keys};
pub use pools::{POOLS, api, backend};

/// One setting of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// The flag's name without its dashes. The environment variable is the same name in capitals, with `_` for `-`.
    pub name: &'static str,
    /// The kind of value, in a word or two, with its unit.
    pub value: &'static str,
    /// The value that holds when none is given, as it would be written.
    pub default: Option<&'static str>,
    /// What the setting does.
    pub help: &'static str,
    /// When to change it.
    pub change: &'static str,
    /// Whether the value must never be shown.
    pub is_secret: bool,
    /// Whether the flag may be given several times. A variable then has one value a line.
    pub repeats: bool,
}

impl Setting {
    /// The name of the environment variable.
    #[must_use]
    pub fn variable(&self) -> String {
        self.name.to_ascii_uppercase().replace('-', "_")
    }
}

/// Where a value comes from. Later variants take precedence over earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SettingSource {
    /// No source: the setting's default applies, if it has one.
    Default,
    /// The program's code, by [`Values::set`].
    Program,
    /// An environment variable.
    Environment,
    /// A flag on the command line.
    Flag,
}

/// The given values and their sources. `Debug` shows no value.
#[derive(Debug, Clone)]
pub struct Values {
    settings: Vec<&'static Setting>,
    given: BTreeMap<&'static str, Given>,
    /// Values of libpq's variables, used where no source gives a setting. They take the place of a default.
    libpq: BTreeMap<&'static str, (Given, &'static str)>,
}

#[derive(Debug, Clone)]
struct Given {
    /// `None` if it was not UTF-8.
    text: Option<SecretString>,
    source: SettingSource,
}

impl Values {
    /// An empty set of values for these settings.
    #[must_use]
    pub fn new(settings: impl IntoIterator<Item = &'static Setting>) -> Self {
        Self { settings: settings.into_iter().collect(), given: BTreeMap::new(), libpq: BTreeMap::new() }
    }

    /// The settings, in the order of their owners' tables.
    pub fn settings(&self) -> impl Iterator<Item = &'static Setting> + '_ {
        self.settings.iter().copied()
    }

    /// Reads the environment of the process. These variables count as missing: an empty variable, and a `…_PORT` such as
    /// `tcp://10.0.0.1:5432`, which Kubernetes and Docker set for a service of that name. A setting without a value gets that of
    /// libpq's variable, if [`Config`](crate::Config) reads that variable.
    pub fn read_environment(&mut self) {
        self.read_variables(|variable| std::env::var_os(variable));
    }

    pub(crate) fn read_variables(&mut self, lookup: impl Fn(&str) -> Option<OsString>) {
        self.read(SettingSource::Environment, |setting| {
            lookup(&setting.variable()).filter(|text| !is_service_link(setting, text))
        });
        for (setting, variable) in database::libpq() {
            // `Config` reports a variable that is not UTF-8.
            let text =
                lookup(variable).and_then(|text| text.into_string().ok()).filter(|text| !text.is_empty());
            if let Some(text) = text.filter(|_| self.settings.iter().any(|known| known.name == setting.name))
            {
                let given =
                    Given { text: Some(SecretString::from(text)), source: SettingSource::Environment };
                self.libpq.insert(setting.name, (given, variable));
            }
        }
    }

    /// Stores what `lookup` returns for each setting. Values from a later [`SettingSource`] are not overwritten.
    pub fn read(&mut self, source: SettingSource, lookup: impl Fn(&Setting) -> Option<OsString>) {
        for setting in &self.settings {
            let Some(text) = lookup(setting).filter(|text| !text.is_empty()) else { continue };
            if self.given.get(setting.name).is_some_and(|given| given.source > source) {
                continue;
            }
            let text = text.into_string().ok().map(SecretString::from);
            self.given.insert(setting.name, Given { text, source });
        }
    }

    /// Stores a value from the program. The environment and flags override it.
    ///
    /// # Panics
    ///
    /// If there is no setting of that name, which is a mistake in the program.
    pub fn set(&mut self, name: &str, text: impl Into<OsString>) {
        assert!(self.settings.iter().any(|setting| setting.name == name), "there is no setting `{name}`");
        let text = text.into();
        self.read(SettingSource::Program, |setting| (setting.name == name).then(|| text.clone()));
    }

    /// The value that applies: the given one, else that of libpq's variable.
    fn found(&self, name: &str) -> Option<&Given> {
        self.given.get(name).or_else(|| self.libpq.get(name).map(|(given, _)| given))
    }

    /// The source of a setting's value.
    #[must_use]
    pub fn source(&self, name: &str) -> SettingSource {
        self.found(name).map_or(SettingSource::Default, |given| given.source)
    }

    /// Whether a value was given. A value from libpq's variable does not count as given.
    #[must_use]
    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// The value that applies, fit for people to see. A secret is shown as `(hidden)`. PEM is shown as `(PEM)`, since a
    /// certificate's text sometimes contains its key.
    #[must_use]
    pub fn shown(&self, setting: &Setting) -> Option<String> {
        match self.found(setting.name) {
            Some(_) if setting.is_secret => Some("(hidden)".to_owned()),
            Some(Given { text: Some(text), .. }) if crate::config::is_pem(text.expose_secret()) => {
                Some("(PEM)".to_owned())
            }
            Some(Given { text: Some(text), .. }) => Some(text.expose_secret().to_owned()),
            Some(Given { text: None, .. }) => Some("(not UTF-8)".to_owned()),
            None => setting.default.map(str::to_owned),
        }
    }

    /// The setting's name in its source: a flag, a variable, or the setting's own name.
    #[must_use]
    pub fn known_as(&self, setting: &Setting) -> String {
        match (self.given.get(setting.name), self.libpq.get(setting.name)) {
            (Some(given), _) if given.source == SettingSource::Flag => format!("--{}", setting.name),
            (Some(given), _) if given.source == SettingSource::Environment => setting.variable(),
            (None, Some((_, variable))) => (*variable).to_owned(),
            _ => setting.name.to_owned(),
        }
    }
}

/// Whether a variable was set by Kubernetes or Docker because a service has the name that the setting begins with.
fn is_service_link(setting: &Setting, text: &OsStr) -> bool {
    let text = text.as_encoded_bytes();
    setting.name.ends_with("-port") && (text.starts_with(b"tcp://") || text.starts_with(b"udp://"))
}

/// Parses values and collects errors.
#[derive(Debug)]
pub struct Reader<'v> {
    values: &'v Values,
    findings: Vec<String>,
}

impl<'v> Reader<'v> {
    /// A reader of these values, without errors so far.
    #[must_use]
    pub fn new(values: &'v Values) -> Self {
        Self { values, findings: Vec::new() }
    }

    /// The values.
    #[must_use]
    pub fn values(&self) -> &'v Values {
        self.values
    }

    /// A setting's text, or its default. `None` when it has neither.
    pub fn text(&mut self, setting: &'static Setting) -> Option<&'v str> {
        match self.values.found(setting.name) {
            // A file that was read into a variable ends with a line break.
            Some(Given { text: Some(text), .. }) if !setting.is_secret => {
                Some(text.expose_secret().trim_end_matches(['\r', '\n']))
            }
            Some(Given { text: Some(text), .. }) => Some(text.expose_secret()),
            Some(Given { text: None, .. }) => {
                self.complain(setting, "is not UTF-8");
                None
            }
            None => setting.default,
        }
    }

    /// A whole number within bounds. `None`, and an error in the reader, when the text is not such a number.
    pub fn number(&mut self, setting: &'static Setting, bounds: RangeInclusive<u32>) -> Option<u32> {
        let number = self.text(setting)?.trim().parse().ok().filter(|number| bounds.contains(number));
        if number.is_none() {
            let (from, to) = bounds.into_inner();
            self.complain(setting, format_args!("must be a whole number from {from} to {to}"));
        }
        number
    }

    /// Adds an error about a setting: the rest of a sentence that begins with its name. It must not contain the value.
    pub fn complain(&mut self, setting: &Setting, problem: impl fmt::Display) {
        self.findings.push(format!("{} {problem}", self.values.known_as(setting)));
    }

    /// Adds an error that is not about a single setting: a whole sentence.
    pub fn complain_of_all(&mut self, problem: impl Into<String>) {
        self.findings.push(problem.into());
    }

    /// The setting's name in its source.
    #[must_use]
    pub fn known_as(&self, setting: &Setting) -> String {
        self.values.known_as(setting)
    }

    /// Returns all errors as one.
    ///
    /// # Errors
    ///
    /// [`SettingsError`] when there was any error.
    pub fn finish(self) -> Result<(), SettingsError> {
        if self.findings.is_empty() { Ok(()) } else { Err(SettingsError { findings: self.findings }) }
    }
}

/// Everything that is wrong with the settings. Contains no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsError {
    findings: Vec<String>,
}

impl SettingsError {
    /// One sentence for each error.
    #[must_use]
    pub fn findings(&self) -> &[String] {
        &self.findings
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.findings {
            [one] => f.write_str(one),
            many => {
                write!(f, "{} settings cannot be used:", many.len())?;
                many.iter().try_for_each(|finding| write!(f, "\n  {finding}"))
            }
        }
    }
}

impl std::error::Error for SettingsError {}

#[cfg(test)]
mod tests {
    use super::*;

    static WORD: Setting = Setting {
        name: "a-word",
        value: "TEXT",
        default: Some("none"),
        help: "",
        change: "",
        is_secret: false,
        repeats: false,
    };
    static SECRET: Setting = Setting {
        name: "a-secret",
        value: "TEXT",
        default: None,
        help: "",
        change: "",
        is_secret: true,
        repeats: false,
    };
    static COUNT: Setting = Setting {
        name: "a-count",
        value: "N",
        default: Some("3"),
        help: "",
        change: "",
        is_secret: false,
        repeats: false,
    };

    fn values() -> Values {
        Values::new([&WORD, &SECRET, &COUNT])
    }

    fn give(values: &mut Values, source: SettingSource, name: &str, text: &str) {
        values.read(source, |setting| (setting.name == name).then(|| text.into()));
    }

    #[test]
    fn a_flag_overrides_the_environment_and_the_environment_overrides_the_program() {
        let mut values = values();
        assert_eq!(
            (values.source("a-word"), values.shown(&WORD)),
            (SettingSource::Default, Some("none".into()))
        );

        give(&mut values, SettingSource::Flag, "a-word", "by flag");
        give(&mut values, SettingSource::Environment, "a-word", "by environment");
        values.set("a-word", "by program");

        assert_eq!(
            (values.source("a-word"), values.shown(&WORD)),
            (SettingSource::Flag, Some("by flag".into()))
        );
        assert_eq!(Reader::new(&values).text(&WORD), Some("by flag"));
    }

    #[test]
    fn all_errors_come_at_once_with_the_names_that_their_sources_use() {
        let mut values = values();
        give(&mut values, SettingSource::Environment, "a-count", "many");
        values.read(SettingSource::Flag, |setting| {
            use std::os::unix::ffi::OsStringExt;
            (setting.name == "a-secret").then(|| OsString::from_vec(vec![0xff]))
        });

        let mut reader = Reader::new(&values);
        assert_eq!((reader.number(&COUNT, 1..=9), reader.text(&SECRET)), (None, None));

        let error = reader.finish().expect_err("two errors");
        assert_eq!(
            error.to_string(),
            "2 settings cannot be used:\n  A_COUNT must be a whole number from 1 to 9\n  --a-secret is not UTF-8"
        );
    }

    #[test]
    fn an_empty_value_counts_as_missing() {
        let mut values = values();
        give(&mut values, SettingSource::Environment, "a-count", "");

        let mut reader = Reader::new(&values);

        assert_eq!(reader.number(&COUNT, 1..=9), Some(3));
        reader.finish().expect("nothing is wrong");
    }

    #[test]
    fn no_output_shows_a_secret() {
        let mut values = values();
        values.set("a-secret", "hunter2");
        values.set("a-count", "hunter2");
        let mut reader = Reader::new(&values);
        reader.number(&COUNT, 1..=9);

        assert!(!format!("{values:?} {reader:?} {:?}", values.shown(&SECRET)).contains("hunter2"));
        let error = reader.finish().expect_err("no number");
        assert!(!format!("{error:?} {error}").contains("hunter2"));
    }
}
