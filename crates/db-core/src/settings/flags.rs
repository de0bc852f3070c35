//! Settings as flags of the command line, for clap.

use std::ffi::OsString;

use clap::{Arg, ArgMatches};

use super::{Setting, SettingSource, Values};

impl Setting {
    /// A flag of clap's, which may stand before or after a subcommand. The environment is not clap's to read: [`Values`]
    /// knows who said what.
    #[must_use]
    pub fn arg(&'static self) -> Arg {
        let mut help = self.help.to_owned();
        if self.is_secret {
            help.push_str(" Everybody who lists processes sees a flag, but not the environment.");
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
            // -c name=value is one.
            .allow_hyphen_values(self.value == "OPTIONS")
            .value_parser(clap::value_parser!(OsString))
    }
}

impl Values {
    /// Reads the flags that were made by [`Setting::arg`].
    pub fn read_flags(&mut self, matches: &ArgMatches) {
        self.read(SettingSource::Flag, |setting| {
            matches.try_get_one::<OsString>(setting.name).ok().flatten().cloned()
        });
    }
}
