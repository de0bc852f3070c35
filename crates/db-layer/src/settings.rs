//! The settings of all crates, as flags, environment variables and defaults of the program.

use std::ffi::OsString;

use db_core::settings::{
    DATABASE, KEYS, POOLS, Reader, Setting, SettingSource, SettingsError, Values, api, backend, database,
    direct, has_database, has_key, key_use, keys, require_direct, takes_effect,
};
use db_core::{Config, PoolOptions};
use db_notify::settings::{BUS, bus};

use crate::{KeyOptions, Options};

static INSTANCES: Setting = Setting {
    name: "instances",
    value: "NUMBER",
    default: Some("1"),
    help: "How many instances of the service run at once. Opening fails when the pools of all instances together exceed the \
           server's max_connections. 0 turns this check off, and so does a direct address, since it means a connection pooler. While Redis is \
           away, each instance has its share of a rate limit.",
    change: "When more than one instance runs: to the most that run at once, including the overlap during a deployment.",
    is_secret: false,
    repeats: false,
};

#[cfg(feature = "redis")]
static REDIS: Setting = Setting {
    name: "redis-url",
    value: "URL",
    default: None,
    help: "Where Redis is, for rate limits of all instances together: redis://user:password@host:port/database, rediss://… with TLS, or \
           redis+unix:///path.",
    change: "When several instances run that share their rate limits.",
    is_secret: true,
    repeats: false,
};

/// The settings given by flags, by the environment and by the program itself, not checked yet.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let settings = db_layer::Settings::from_environment();
/// let db = db_layer::open(settings.options()?).await?;
/// # drop(db);
/// # Ok(())
/// # }
/// ```
///
/// With the feature `clap` it is `clap::Args`, to be flattened into a service's own. A flag overrides the environment, and the
/// environment overrides what the program [set](Settings::set).
#[derive(Debug, Clone)]
pub struct Settings {
    values: Values,
}

impl Default for Settings {
    /// No settings.
    fn default() -> Self {
        Self { values: Values::new(all()) }
    }
}

/// The settings of all crates, in the order in which they are shown.
fn all() -> impl Iterator<Item = &'static Setting> {
    let all = DATABASE.into_iter().chain(POOLS).chain([&INSTANCES]).chain(BUS).chain(KEYS);
    #[cfg(feature = "redis")]
    let all = all.chain([&REDIS]);
    all
}

impl Settings {
    /// The settings in the environment.
    #[must_use]
    pub fn from_environment() -> Self {
        let mut settings = Self::default();
        settings.values.read_environment();
        settings
    }

    /// Sets a default of the program, which flags and the environment override.
    ///
    /// # Panics
    ///
    /// When there is no setting of that name.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.values.set(name, value);
        self
    }

    /// Whether any setting says where the database is.
    #[must_use]
    pub fn has_database(&self) -> bool {
        has_database(&self.values)
    }

    /// Whether any setting gives a key to seal columns under.
    #[must_use]
    pub fn has_encryption_key(&self) -> bool {
        has_key(&self.values)
    }

    /// Each setting, its effective value in a form that may be shown, and where the value comes from. The value is `None` for a
    /// setting that another one overrides: the parts of an address beside a whole address from the same source, an address from
    /// a lower source than the parts that name the database, or another form of a key from a lower source.
    pub fn effective(&self) -> impl Iterator<Item = (&'static Setting, Option<String>, SettingSource)> + '_ {
        self.values.settings().map(|setting| {
            let value = self.values.shown(setting).filter(|_| takes_effect(&self.values, setting));
            (setting, value, self.values.source(setting.name))
        })
    }

    /// The name of the setting at its source: a flag, an environment variable (which may be libpq's, such as `PGUSER`), or the
    /// setting's own name.
    #[must_use]
    pub fn known_as(&self, setting: &Setting) -> String {
        self.values.known_as(setting)
    }

    /// The options to open a database with.
    ///
    /// # Errors
    ///
    /// [`SettingsError`] lists everything that is wrong.
    pub fn options(&self) -> Result<Options, SettingsError> {
        let mut reader = Reader::new(&self.values);
        let config = database(&mut reader);
        finish(reader, config)
    }

    /// The options for a database whose address the program has from elsewhere.
    ///
    /// # Errors
    ///
    /// [`SettingsError`] lists everything that is wrong.
    pub fn options_for(&self, config: Config) -> Result<Options, SettingsError> {
        finish(Reader::new(&self.values), Some(config))
    }

    /// Checks all settings except those of the database's address.
    ///
    /// # Errors
    ///
    /// [`SettingsError`] lists everything that is wrong.
    pub fn check_without_database(&self) -> Result<(), SettingsError> {
        let mut reader = Reader::new(&self.values);
        Rest::read(&mut reader);
        reader.finish()
    }
}

/// Reads the other settings, and makes the options.
fn finish(mut reader: Reader<'_>, config: Option<Config>) -> Result<Options, SettingsError> {
    let rest = Rest::read(&mut reader);
    if let Some(config) = &config {
        require_direct(&mut reader, config);
    }
    reader.finish()?;
    let config = config.expect("the reader has reported a missing address");
    Ok(Options {
        direct: rest.direct,
        instances: rest.instances,
        api: rest.api,
        backend: rest.backend,
        bus: rest.bus,
        keys: rest.keys,
        holding: rest.holding,
        #[cfg(feature = "redis")]
        redis: rest.redis,
        ..Options::new(config)
    })
}

/// All settings except those of the database's address.
struct Rest {
    direct: Option<Config>,
    instances: u32,
    api: PoolOptions,
    backend: PoolOptions,
    bus: db_notify::BusOptions,
    keys: Option<db_core::encryption::KeySources>,
    holding: KeyOptions,
    #[cfg(feature = "redis")]
    redis: Option<crate::redis::RedisConfig>,
}

impl Rest {
    fn read(reader: &mut Reader<'_>) -> Self {
        let (envelope, missing) = key_use(reader);
        Self {
            direct: direct(reader),
            instances: reader.number(&INSTANCES, 0..=100_000).unwrap_or(1),
            api: api(reader),
            backend: backend(reader),
            bus: bus(reader),
            keys: keys(reader),
            holding: KeyOptions::default().envelope(envelope).missing(missing),
            #[cfg(feature = "redis")]
            redis: redis(reader),
        }
    }
}

#[cfg(feature = "redis")]
fn redis(reader: &mut Reader<'_>) -> Option<crate::redis::RedisConfig> {
    let url = reader.text(&REDIS)?;
    let config = crate::redis::RedisConfig::from_url(url.trim_end_matches(['\r', '\n']));
    config.map_err(|error| reader.complain(&REDIS, error)).ok()
}

#[cfg(feature = "clap")]
mod flags {
    use clap::{ArgMatches, Args, Command, FromArgMatches};

    use super::{Settings, all};

    impl Args for Settings {
        fn augment_args(command: Command) -> Command {
            command.args(all().map(db_core::settings::Setting::arg))
        }

        fn augment_args_for_update(command: Command) -> Command {
            Self::augment_args(command)
        }
    }

    impl FromArgMatches for Settings {
        /// Reads the environment, too.
        fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
            let mut settings = Self::from_environment();
            settings.values.read_flags(matches);
            Ok(settings)
        }

        fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
            self.values.read_flags(matches);
            Ok(())
        }
    }
}
