//! The command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use db_layer::{SettingSource, Settings};

use crate::print::shown;
use crate::serve::Host;

/// Run a command as a build, and watch it live from anywhere.
///
/// Without a subcommand: serves the web page on 127.0.0.1:8080 (or a free port) and starts one build to look at.
///
/// Builds live in the PostgreSQL that `DATABASE_URL` names, or `--postgres-database` and its like. Without them,
/// buildwatch starts one of its own in the data folder, shares it with every other buildwatch that uses the folder, and
/// stops it when the last of them ends.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) site: Site,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Where builds live.
#[derive(Debug, Args)]
pub(crate) struct Site {
    /// The data folder: the key that plans are sealed under, unless another is given, and the embedded PostgreSQL.
    ///
    /// Default: the platform's data folder, such as ~/.local/share/buildwatch; for root, /var/lib/buildwatch. A folder that
    /// belongs to another user, or that others may write to, is refused, and so is a key that others may read.
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

impl Site {
    /// The flags by which another buildwatch finds the same place, as a shell takes them, each after a space. A secret is not
    /// told: `...` stands for it.
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

    /// Warns of secrets in the list of processes.
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

/// A name as `Host` has it, without a port.
fn host_name(text: &str) -> Result<Host, &'static str> {
    match Host::parse(text) {
        Some(host) if host.port.is_none() => Ok(host),
        _ => Err("not a name as browsers say it, such as builds.example: no scheme, no port, ASCII"),
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command as a build and print its output as it is stored.
    ///
    /// The build's stdout goes to stdout, its stderr to stderr. The command's stdin is empty, and its environment is this
    /// one without what is buildwatch's own: the settings that are secrets, PG*, addresses of PostgreSQL with a password,
    /// and what a service manager says. `run -- env NAME=value COMMAND` gives it more. The exit code is the
    /// command's; 127 when there is no such command, 126 when it cannot be executed, 128 plus the signal's number when
    /// a signal ended it, 125 when buildwatch itself fails. Ctrl-C ends the command and marks the build as aborted.
    Run(RunArgs),
    /// Show builds on a web page, and serve the API.
    Serve(ServeArgs),
    /// Print a build's events from the start, or from an event on, and follow it to its end.
    ///
    /// How the build ended is said on stderr. The exit code is 0 all the same, unless --exit-code is given.
    Watch(WatchArgs),
    /// List builds, the newest first.
    List(ListArgs),
    /// Bring the database to a version. Every other subcommand brings it to the newest one first.
    Migrate(MigrateArgs),
    /// Show what is in force of all settings, and who said so, without secrets. Fails when something is wrong with them.
    Config(ConfigArgs),
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct PrintArgs {
    /// Print each event as a JSON object on a line of its own.
    #[arg(long)]
    pub(crate) json: bool,
    /// Let control sequences of the output reach the terminal, and characters that turn the direction of the text or
    /// that nobody sees. Without it they are shown, not obeyed: `^[`, `\u{202e}`. Output that does not go to a terminal
    /// is never changed.
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
    /// Where other machines can reach it, reading builds takes the token that is printed at the start, as starting them does:
    /// commands and their output often hold secrets. There is no TLS: put a proxy with it in front.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// Let builds be started over HTTP, which runs commands on this machine as this user.
    ///
    /// It takes a token that is printed at the start: send it as `Authorization: Bearer TOKEN`, or open the printed
    /// address, which hands it to the page.
    #[arg(long)]
    pub(crate) allow_start: bool,
    /// Allow --allow-start together with an address that other machines can reach.
    #[arg(long, requires = "allow_start")]
    pub(crate) allow_start_from_anywhere: bool,
    /// Let everybody who can reach the server read builds, with their commands and output, without the token.
    #[arg(long)]
    pub(crate) public_read: bool,
    /// A name that browsers reach this server by, beside `localhost`, this machine's name and IP addresses. Requests for
    /// other names are refused, since a page elsewhere may have made its name point here. May be repeated. A server with a
    /// name of its own is taken to be reached from elsewhere, through a proxy: reading builds takes the token.
    #[arg(long, value_name = "NAME", value_parser = host_name)]
    pub(crate) host: Vec<Host>,
    /// Print where it listens as a JSON object on a line of its own.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The build's number.
    pub(crate) id: i64,
    /// The last event already seen: print those after it.
    #[arg(long, value_name = "EVENT", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
    pub(crate) from: i64,
    /// End with the build's exit code, as `run` does: 125 when it has none, was not watched to its end, or buildwatch
    /// itself fails, and 128 plus the signal's number when a signal ended the watching.
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
    /// Revert all migrations newer than a version, with what they hold, after asking on the terminal.
    Down {
        /// The version to go back to; 0 reverts everything.
        #[arg(long, value_name = "VERSION")]
        to: i64,
        /// Do not ask. Without a terminal to ask on, it takes this.
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
