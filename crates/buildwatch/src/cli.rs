//! The command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use db_layer::db_migrate::KeysArgs;
use db_layer::db_migrate::command::SealedColumns;
use db_layer::{SettingSource, Settings};

use crate::host::Host;
use crate::terminal::shown;

/// Run a command as a build, and watch it live from any machine.
///
/// Without a subcommand: serves the web page on 127.0.0.1:8080 (or a free port) and starts a first build as an example.
///
/// Builds are stored in the PostgreSQL that `DATABASE_URL` or `--postgres-database` and related flags name. Without them,
/// buildwatch starts a server in the data folder, shares it with every other buildwatch on that folder, and stops it when the
/// last one ends.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) site: Site,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Where builds are stored.
#[derive(Debug, Args)]
pub(crate) struct Site {
    /// The data folder, with the embedded PostgreSQL and, unless another is given, the key that plans are sealed under.
    ///
    /// Default: the platform's data folder, such as ~/.local/share/buildwatch; for root, /var/lib/buildwatch. A folder that
    /// belongs to another user or that others may write to is refused, and so is a key that others may read.
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

impl Site {
    /// The flags with which another buildwatch finds the same database, quoted for a shell, each after a space. A secret is
    /// shown as `...`.
    pub(crate) fn flags(&self) -> String {
        let data = self.data.as_deref().map(|data| {
            let data = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
            format!(" --data {}", quoted(&data.to_string_lossy()))
        });
        let given = self.settings.effective().filter(|(.., source)| *source == SettingSource::Flag);
        let given = given.map(|(setting, value, _)| {
            let value = value.filter(|value| !setting.is_secret && value != "(PEM)");
            format!(" --{} {}", setting.name, value.map_or("...".to_owned(), |value| quoted(&value)))
        });
        shown(&data.into_iter().chain(given).collect::<String>())
    }

    /// Warns of secrets given as flags, which the list of processes shows.
    pub(crate) fn warn_of_open_secrets(&self) {
        for (setting, _, source) in self.settings.effective() {
            if setting.is_secret && source == SettingSource::Flag {
                let (name, variable) = (setting.name, setting.variable());
                tracing::warn!(
                    "every user of this machine, and each build, can read --{name} in the list of processes: use {variable}"
                );
            }
        }
    }
}

/// A host name as in the header `Host`, without a port.
fn host_name(text: &str) -> Result<Host, &'static str> {
    match Host::parse(text) {
        Some(host) if host.port.is_none() => Ok(host),
        _ => Err("not a host name such as builds.example: give it without scheme and port, in ASCII"),
    }
}

/// A word, quoted for a shell.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command as a build and print its output once it is stored.
    ///
    /// The build's stdout goes to stdout, its stderr to stderr. The command's stdin is empty. Its environment is buildwatch's,
    /// without secret settings, PG*, PostgreSQL addresses with a password, and the variables of a service manager; `run -- env
    /// NAME=value COMMAND` adds variables. The exit code is the command's; 127 if the command does not exist, 126 if it cannot
    /// be executed, 128 plus the signal's number if a signal ended it, 125 if buildwatch itself fails. Ctrl-C ends the command
    /// and marks the build as aborted.
    Run(RunArgs),
    /// Show builds on a web page, and serve the API.
    Serve(ServeArgs),
    /// Print a build's events from the start, or after a given event, and follow it to its end.
    ///
    /// The result is printed on stderr. The exit code is 0 whatever the result, unless --exit-code is given.
    Watch(WatchArgs),
    /// List builds, the newest first.
    List(ListArgs),
    /// Migrate the database to a version. Every other subcommand first migrates to the newest one.
    Migrate(MigrateArgs),
    /// Show and change the keys that plans are sealed under.
    Keys(KeysArgs),
    #[command(flatten)]
    Sealed(SealedColumns),
    /// Show the value and source of each setting, without secrets. Fails if a setting is wrong.
    Config(ConfigArgs),
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct PrintArgs {
    /// Print each event as a JSON object on a line of its own.
    #[arg(long)]
    pub(crate) json: bool,
    /// Pass control characters of the output to the terminal, as well as characters that change the direction of text or are
    /// invisible. By default they are escaped: `^[`, `\u{202e}`. Output that does not go to a terminal is never changed.
    #[arg(long, conflicts_with = "json")]
    pub(crate) raw: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) print: PrintArgs,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct ServeArgs {
    /// The address to listen on. Port 0 takes a free one.
    ///
    /// If other machines can reach the address, reading builds takes the token that is printed at the start, as starting builds
    /// does: commands and their output often hold secrets. There is no TLS: put a proxy with TLS in front.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// Allow clients to start builds over HTTP, which runs commands on this machine as this user.
    ///
    /// Starting a build takes the token that is printed at the start: send it as `Authorization: Bearer TOKEN`, or open the
    /// printed address, which passes it to the page.
    #[arg(long)]
    pub(crate) allow_start: bool,
    /// Allow --allow-start together with an address that other machines can reach.
    #[arg(long, requires = "allow_start")]
    pub(crate) allow_start_from_anywhere: bool,
    /// Let everyone who can reach the server read builds, with commands and output, without the token.
    #[arg(long)]
    pub(crate) public_read: bool,
    /// A host name of this server, beside `localhost`, this machine's name and IP addresses. Requests for other names are
    /// refused, since another site may have pointed its name at this server. May be repeated. With a name, the server counts as
    /// reachable from other machines, through a proxy: reading builds takes the token.
    #[arg(long, value_name = "NAME", value_parser = host_name)]
    pub(crate) host: Vec<Host>,
    /// The most requests a second for pages and the API of each address; more are answered 429. 0 sets no limit. With --redis-url, all
    /// instances count together.
    #[arg(long, value_name = "REQUESTS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    pub(crate) rate_limit: u32,
    /// How many proxies are in front, each of which appends the address of its client to `X-Forwarded-For`.
    #[arg(long, value_name = "PROXIES", default_value_t = 0)]
    pub(crate) proxies: u8,
    /// Print the address and the token as a JSON object on one line.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The build's number.
    pub(crate) id: i64,
    /// The last event already seen; printing starts after it.
    #[arg(long, value_name = "EVENT", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
    pub(crate) from: i64,
    /// Exit with the build's exit code, as `run` does: 125 if the build has none, was not watched to its end, or buildwatch
    /// itself fails, and 128 plus the signal's number if a signal ended the watching.
    #[arg(long)]
    pub(crate) exit_code: bool,
    #[command(flatten)]
    pub(crate) print: PrintArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Print each build as a JSON object on a line of its own.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// Print each setting as a JSON object on a line of its own.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// Print each migration as a JSON object on a line of its own.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) action: Option<MigrateAction>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MigrateAction {
    /// Apply all pending migrations. This is the default.
    Up,
    /// Revert all migrations newer than a version, including the data in their tables, after asking on the terminal.
    Down {
        /// The version to go back to; 0 reverts everything.
        #[arg(long, value_name = "VERSION")]
        to: i64,
        /// Do not ask. Required without a terminal.
        #[arg(long)]
        yes: bool,
    },
    /// Show the state of each migration, and change nothing.
    Info,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn everything_after_the_command_is_the_commands() {
        for line in [
            vec!["buildwatch", "run", "--", "ls", "--json", "-l"],
            vec!["buildwatch", "run", "ls", "--json", "-l"],
        ] {
            let Some(Command::Run(args)) = Cli::parse_from(line).command else { panic!("not run") };
            assert_eq!(args.command, ["ls", "--json", "-l"]);
            assert!(!args.print.json);
        }
    }
}
