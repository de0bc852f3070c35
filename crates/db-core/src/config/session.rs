//! The server settings that each session of an address starts with.

use std::fmt;

use super::ConfigError;
use super::address::plain;

/// Server settings by name. `Debug` shows no value.
#[derive(Clone, Default)]
pub(super) struct Session {
    settings: Vec<(String, String)>,
    /// The parameter that gave the first setting.
    set_by: Option<&'static str>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.settings.iter().map(|(name, _)| name)).finish()
    }
}

const EXPECTED: &str = "a list of settings, each written as -c name=value or --name=value, with a backslash before a space in a value";

/// Settings that the layer or the driver sets for each session, so that the address's value would have no effect.
const RESERVED: [(&str, &str); 11] = [
    ("application_name", "write application_name as a parameter of its own"),
    ("client_encoding", "the driver sets client_encoding itself"),
    ("datestyle", "the driver sets datestyle itself"),
    ("extra_float_digits", "the driver sets extra_float_digits itself"),
    ("idle_in_transaction_session_timeout", "pools set it themselves: use PoolOptions::tx_timeout"),
    ("intervalstyle", "the driver reads intervals in one style only"),
    ("tcp_keepalives_count", "pools and the bus set it themselves: use PoolOptions::keepalive"),
    ("tcp_keepalives_idle", "pools and the bus set it themselves: use PoolOptions::keepalive"),
    ("tcp_keepalives_interval", "pools and the bus set it themselves: use PoolOptions::keepalive"),
    ("tcp_user_timeout", "pools and the bus set it themselves: use PoolOptions::keepalive"),
    ("timezone", "the driver sets timezone itself, and reads times in UTC"),
];

/// Why the session's setting of this name cannot be changed; `None` if it can.
pub(crate) fn why_reserved(name: &str) -> Option<&'static str> {
    let name = name.replace('-', "_").to_ascii_lowercase();
    RESERVED.iter().find(|(reserved, _)| *reserved == name).map(|(_, reason)| *reason)
}

impl Session {
    /// Sets a server setting that is a parameter of its own.
    pub(super) fn set(&mut self, setting: &'static str, value: &str) -> Result<(), ConfigError> {
        self.add(setting, setting, value.to_owned())
    }

    /// Prisma's `schema`: one schema name, not a list.
    pub(super) fn set_schema(&mut self, name: &str) -> Result<(), ConfigError> {
        self.add("schema", "search_path", format!("\"{}\"", name.replace('"', "\"\"")))
    }

    /// Sets `options[name]=value`; `None` if the parameter has another form.
    pub(super) fn set_option(&mut self, parameter: &str, value: &str) -> Option<Result<(), ConfigError>> {
        let name = parameter.strip_prefix("options[")?.strip_suffix(']')?;
        Some(self.add("options", name, value.to_owned()))
    }

    /// Parses `options` by the server's rules: white space separates words, a backslash escapes the next character.
    pub(super) fn read(&mut self, text: &str) -> Result<(), ConfigError> {
        let wrong = ConfigError::Parameter { parameter: "options", expected: EXPECTED };
        let mut words = split_words(text).into_iter();
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

    fn add(&mut self, set_by: &'static str, name: &str, value: String) -> Result<(), ConfigError> {
        // The server normalizes setting names in the same way.
        let name = name.replace('-', "_").to_ascii_lowercase();
        let is_name = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$'))
        };
        if !is_name(&name) {
            return Err(ConfigError::Parameter { parameter: "options", expected: EXPECTED });
        }
        if let Some(reason) = why_reserved(&name) {
            return Err(ConfigError::Refused { parameter: "options", reason });
        }
        match self.settings.iter().find(|(other, _)| *other == name) {
            Some((_, before)) if *before != value => return Err(ConfigError::Twice(plain(&name))),
            Some(_) => {}
            None => self.settings.push((name, value)),
        }
        self.set_by.get_or_insert(set_by);
        Ok(())
    }

    /// The parameter that gave the first setting, if any.
    pub(super) fn set_by(&self) -> Option<&'static str> {
        self.set_by
    }

    pub(super) fn settings(&self) -> &[(String, String)] {
        &self.settings
    }
}

fn split_words(text: &str) -> Vec<String> {
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
