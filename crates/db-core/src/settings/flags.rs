//! Settings as command-line flags, for clap.

use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, ArgMatches};

use super::{Setting, SettingSource, Values};

impl Setting {
    /// The clap flag of the setting, valid before and after a subcommand. clap does not read the environment, because [`Values`]
    /// records the source of each value.
    #[must_use]
    pub fn arg(&'static self) -> Arg {
        let mut help = self.help.to_owned();
        if self.is_secret {
            help.push_str(" A flag is visible in process lists, an environment variable is not.");
        }
        if self.repeats {
            help.push_str(" May be given several times; the variable has one value a line.");
        }
        help = format!("{help} [env: {}]", self.variable());
        if let Some(default) = self.default {
            help = format!("{help} [default: {default}]");
        }
        Arg::new(self.name)
            .long(self.name)
            .value_name(self.value)
            .help(help)
            .help_heading("Database")
            .hide_short_help(true)
            .global(true)
            // A value such as `-c name=value` begins with a hyphen.
            .allow_hyphen_values(self.value == "OPTIONS")
            .action(if self.repeats { ArgAction::Append } else { ArgAction::Set })
            .value_parser(clap::value_parser!(OsString))
    }
}

impl Values {
    /// Reads flags that were made by [`Setting::arg`].
    pub fn read_flags(&mut self, matches: &ArgMatches) {
        self.read(SettingSource::Flag, |setting| {
            let values = matches.try_get_many::<OsString>(setting.name).ok().flatten()?;
            let values: Vec<_> = values.map(OsString::as_os_str).collect();
            Some(values.join(OsStr::new("\n")))
        });
    }
}
