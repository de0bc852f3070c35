//! What each session of an address is told when it begins.

use std::fmt;

use super::ConfigError;
use super::address::plain;

/// Settings of the server's, by name. `Debug` shows no value.
#[derive(Clone, Default)]
pub(super) struct Session {
    settings: Vec<(String, String)>,
    /// The parameter that said the first of them.
    by: Option<&'static str>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.settings.iter().map(|(name, _)| name)).finish()
    }
}

const EXPECTED: &str =
    "made of settings, each as -c name=value or --name=value, with a backslash before a space in a value";

/// What would not be heard, because the layer or the driver says it to each session, and last.
const SAID_ALREADY: [(&str, &str); 11] = [
    ("application_name", "write application_name as a parameter of its own"),
    ("client_encoding", "the driver says client_encoding itself"),
    ("datestyle", "the driver says datestyle itself"),
    ("extra_float_digits", "the driver says extra_float_digits itself"),
    ("idle_in_transaction_session_timeout", "pools say it themselves: set PoolOptions::tx_timeout"),
    ("intervalstyle", "the driver reads intervals in one style"),
    ("tcp_keepalives_count", "pools and the bus say it themselves: set PoolOptions::keepalive"),
    ("tcp_keepalives_idle", "pools and the bus say it themselves: set PoolOptions::keepalive"),
    ("tcp_keepalives_interval", "pools and the bus say it themselves: set PoolOptions::keepalive"),
    ("tcp_user_timeout", "pools and the bus say it themselves: set PoolOptions::keepalive"),
    ("timezone", "the driver says timezone itself, and reads times in UTC"),
];

/// Why a session cannot be given a setting of this name, if it cannot.
pub(crate) fn set_already(name: &str) -> Option<&'static str> {
    let name = name.replace('-', "_").to_ascii_lowercase();
    SAID_ALREADY.iter().find(|(said, _)| *said == name).map(|(_, reason)| *reason)
}

impl Session {
    /// Takes one of the server's settings that is a parameter of its own.
    pub(super) fn set(&mut self, setting: &'static str, value: &str) -> Result<(), ConfigError> {
        self.add(setting, setting, value.to_owned())
    }

    /// Prisma's word, for a name and not for a path.
    pub(super) fn set_schema(&mut self, name: &str) -> Result<(), ConfigError> {
        self.add("schema", "search_path", format!("\"{}\"", name.replace('"', "\"\"")))
    }

    /// Takes `options[name]=value`, if the parameter is that.
    pub(super) fn set_option(&mut self, parameter: &str, value: &str) -> Option<Result<(), ConfigError>> {
        let name = parameter.strip_prefix("options[")?.strip_suffix(']')?;
        Some(self.add("options", name, value.to_owned()))
    }

    /// The server's own rules for `options`: white space parts its words, a backslash takes what follows as it is.
    pub(super) fn read(&mut self, text: &str) -> Result<(), ConfigError> {
        let wrong = ConfigError::Parameter { parameter: "options", expected: EXPECTED };
        let mut words = words(text).into_iter();
        while let Some(word) = words.next() {
            let setting = if word == "-c" {
                words.next()
            } else {
                word.strip_prefix("--").or_else(|| word.strip_prefix("-c")).map(str::to_owned)
            };
            let setting = setting.ok_or_else(|| wrong.clone())?;
            let (name, value) = setting.split_once('=').ok_or_else(|| wrong.clone())?;
            self.add("options", name, value.to_owned())?;
        }
        Ok(())
    }

    fn add(&mut self, by: &'static str, name: &str, value: String) -> Result<(), ConfigError> {
        // As the server reads the name of a setting.
        let name = name.replace('-', "_").to_ascii_lowercase();
        let is_name = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$'))
        };
        if !is_name(&name) {
            return Err(ConfigError::Parameter { parameter: "options", expected: EXPECTED });
        }
        if let Some(reason) = set_already(&name) {
            return Err(ConfigError::Refused { parameter: "options", reason });
        }
        match self.settings.iter().find(|(other, _)| *other == name) {
            Some((_, before)) if *before != value => return Err(ConfigError::Twice(plain(&name))),
            Some(_) => {}
            None => self.settings.push((name, value)),
        }
        self.by.get_or_insert(by);
        Ok(())
    }

    /// The parameter that said something.
    pub(super) fn by(&self) -> Option<&'static str> {
        self.by
    }

    pub(super) fn settings(&self) -> &[(String, String)] {
        &self.settings
    }
}

fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            '\\' => word.get_or_insert_default().extend(chars.next()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}
