//! What a service can be told from outside, of all crates.

use std::ffi::OsString;

use db_core::settings::{
    DATABASE, KEYS, POOLS, Reader, Setting, SettingSource, SettingsError, Values, api, backend, database,
    direct, has_database, keyring, require_direct, takes_effect,
};
use db_core::{Config, PoolOptions};
use db_notify::settings::{BUS, bus};

use crate::Options;

static INSTANCES: Setting = Setting {
    name: "instances",
    value: "NUMBER",
    default: Some("1"),
    help: "How many instances of the service there are. Opening fails when the pools of all of them do not fit into the \
           server's max_connections. 0 turns that off, and so does a direct address, since that means a connection pooler.",
    change: "When more than one instance runs: to the most that run at once, the overlap of a deployment included.",
    is_secret: false,
};

/// What a service was told by flags, by the environment and by its own program, before anything of it was looked at.
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
/// With the feature `clap` it is `clap::Args`, to be flattened into a service's own: a flag is heard before the environment,
/// and that before what the program [set](Settings::set).
#[derive(Debug, Clone)]
pub struct Settings {
    values: Values,
}

impl Default for Settings {
    /// Nothing said by anybody.
    fn default() -> Self {
        Self { values: Values::new(all()) }
    }
}

/// The settings of all crates, in the order in which they are shown.
fn all() -> impl Iterator<Item = &'static Setting> {
    DATABASE.into_iter().chain(POOLS).chain([&INSTANCES]).chain(BUS).chain(KEYS)
}

impl Settings {
    /// What the environment says.
    #[must_use]
    pub fn from_environment() -> Self {
        let mut settings = Self::default();
        settings.values.read_environment();
        settings
    }

    /// Has the program itself say something, which holds unless somebody outside says otherwise.
    ///
    /// # Panics
    ///
    /// When there is no setting of that name.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.values.set(name, value);
        self
    }

    /// Whether anybody says where the database is.
    #[must_use]
    pub fn has_database(&self) -> bool {
        has_database(&self.values)
    }

    /// Whether anybody gives a key to seal columns under.
    #[must_use]
    pub fn has_encryption_key(&self) -> bool {
        KEYS.iter().any(|key| self.values.is_given(key.name))
    }

    /// Each setting, what is in force for it as people may see it, and who said so. Nothing is in force of what is not heard: the
    /// parts of an address beside one that says the same, an address below the parts that name the database, or, of several
    /// forms of a key, those below the highest source.
    pub fn effective(&self) -> impl Iterator<Item = (&'static Setting, Option<String>, SettingSource)> + '_ {
        self.values.settings().map(|setting| {
            let value = self.values.shown(setting).filter(|_| takes_effect(&self.values, setting));
            (setting, value, self.values.source(setting.name))
        })
    }

    /// The name by which whoever gave a value knows the setting: a flag, a variable of the environment (which may be libpq's, such
    /// as `PGUSER`), or the setting's own.
    #[must_use]
    pub fn known_as(&self, setting: &Setting) -> String {
        self.values.known_as(setting)
    }

    /// The options to open a database with.
    ///
    /// # Errors
    ///
    /// [`SettingsError`] with everything that is wrong.
    pub fn options(&self) -> Result<Options, SettingsError> {
        let mut reader = Reader::new(&self.values);
        let config = database(&mut reader);
        finish(reader, config)
    }

    /// The same for a database that the program has found by itself.
    ///
    /// # Errors
    ///
    /// [`SettingsError`] with everything that is wrong.
    pub fn options_for(&self, config: Config) -> Result<Options, SettingsError> {
        finish(Reader::new(&self.values), Some(config))
    }

    /// Looks at everything but where the database is.
    ///
    /// # Errors
    ///
    /// [`SettingsError`] with everything that is wrong.
    pub fn check_without_database(&self) -> Result<(), SettingsError> {
        let mut reader = Reader::new(&self.values);
        Rest::read(&mut reader);
        reader.finish()
    }
}

/// Reads what is left, and puts everything together.
fn finish(mut reader: Reader<'_>, config: Option<Config>) -> Result<Options, SettingsError> {
    let Rest { direct, instances, api, backend, bus, keyring } = Rest::read(&mut reader);
    if let Some(config) = &config {
        require_direct(&mut reader, config);
    }
    reader.finish()?;
    let config = config.expect("where there is none, that was found to be wrong");
    Ok(Options { direct, instances, api, backend, bus, keyring, ..Options::new(config) })
}

/// Everything but where the database is.
struct Rest {
    direct: Option<Config>,
    instances: u32,
    api: PoolOptions,
    backend: PoolOptions,
    bus: db_notify::BusOptions,
    keyring: Option<db_core::encryption::Keyring>,
}

impl Rest {
    fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            direct: direct(reader),
            instances: reader.number(&INSTANCES, 0..=100_000).unwrap_or(1),
            api: api(reader),
            backend: backend(reader),
            bus: bus(reader),
            keyring: keyring(reader),
        }
    }
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
