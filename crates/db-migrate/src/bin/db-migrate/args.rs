//! What the command takes.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use db_migrate::Edits;
use db_migrate::check::Rule;

/// Migrations in the files and the table of `sqlx migrate`, run so that nothing deadlocks and no lock stays behind.
///
/// Exit codes: 0, done, or nothing was found; 1, it failed or was refused, or the arguments are wrong; 2, there is something to do or
/// something wrong, of `--check` and of `validate`, `check` and `drift`.
#[derive(Debug, Parser)]
#[command(name = "db-migrate", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) site: Site,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the migrations and the database are.
#[derive(Args)]
pub(crate) struct Site {
    /// The folder with the migrations.
    #[arg(long, value_name = "DIR", default_value = "migrations", global = true)]
    pub(crate) source: PathBuf,
    /// The database's address: of the server itself, and not of a pooler.
    #[arg(
        long,
        short = 'D',
        value_name = "URL",
        env = "DATABASE_URL",
        hide_env_values = true,
        global = true
    )]
    pub(crate) database_url: Option<String>,
    /// The table that has the migrations on record, instead of that in `sqlx.toml`, or `_sqlx_migrations`.
    #[arg(long, value_name = "NAME", global = true)]
    pub(crate) table: Option<String>,
    /// Run each migration as this role, which then owns what the migration makes.
    #[arg(long, value_name = "ROLE", global = true)]
    pub(crate) role: Option<String>,
    /// What to do when only comments or formatting of an applied file were changed.
    #[arg(long, value_enum, default_value_t = EditsArg::Warn, global = true)]
    pub(crate) edits: EditsArg,
    /// Store no SQL in the history: for files that hold secrets. Then there is no way back on record, and no difference in errors.
    #[arg(long, global = true)]
    pub(crate) without_stored_sql: bool,
}

// The address may hold a password.
impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Site").field("source", &self.source).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EditsArg {
    /// An error, as by sqlx.
    Strict,
    /// A warning.
    Warn,
    /// Nothing.
    Allow,
}

impl From<EditsArg> for Edits {
    fn from(edits: EditsArg) -> Self {
        match edits {
            EditsArg::Strict => Self::Refuse,
            EditsArg::Warn => Self::Warn,
            EditsArg::Allow => Self::Allow,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what `up` would run, and what would stop it. Changes nothing, and takes no lock.
    Plan(PlanArgs),
    /// List the migrations and their states. Changes nothing.
    Status(StatusArgs),
    /// Say all that is wrong with the files, and with the database compared with them. Exits with 2 if anything is. Changes nothing.
    Validate(OutputArgs),
    /// Try migrations on a PostgreSQL of their own, which starts by itself: up, down, and up again, with the locks of each statement and rules
    /// for what hurts a service that runs meanwhile. Exits with 2 if anything is found. Changes nothing elsewhere.
    Check(CheckArgs),
    /// Compare the schema of the database with what its migrations make on a PostgreSQL of their own. Exits with 2 if they differ. Changes
    /// nothing in the database.
    Drift(DriftArgs),
    /// Apply the pending migrations.
    Up(UpArgs),
    /// Revert migrations: the newest, unless told otherwise. Asks in a terminal.
    Down(DownArgs),
    /// Revert the newest migration and apply it again. Asks in a terminal.
    Redo(RedoArgs),
    /// Put the pending migrations up to a version on record without running them, for a database that has their tables already. Compares it
    /// first with what the migrations make, as `drift` does.
    Baseline(BaselineArgs),
    /// Make the files of a new migration.
    New(NewArgs),
    /// Record what you found out about a migration that was cut off. Runs nothing of it.
    Repair(RepairArgs),
    /// Put the checksums of edited files on record, so that sqlx takes them again.
    Rebless(ReblessArgs),
    /// List what was done: when, by whom, for how long, and what failed. Changes nothing.
    History(HistoryArgs),
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutputArgs {
    /// Print one JSON document.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Exit with 2 if a migration is pending, or anything is wrong.
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) check: StatusArgs,
    /// Up to this version.
    #[arg(long, value_name = "VERSION", conflicts_with = "down_to")]
    pub(crate) to: Option<i64>,
    /// What `down --to VERSION` would run.
    #[arg(long, value_name = "VERSION")]
    pub(crate) down_to: Option<i64>,
    /// Print the SQL, too.
    #[arg(long)]
    pub(crate) sql: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Up to this version.
    #[arg(long, value_name = "VERSION")]
    pub(crate) to: Option<i64>,
}

#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Down to this version, which stays; 0 reverts all.
    #[arg(long, value_name = "VERSION", conflicts_with = "steps")]
    pub(crate) to: Option<i64>,
    /// This number of migrations.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) steps: usize,
    #[command(flatten)]
    pub(crate) confirm: ConfirmArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RedoArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) confirm: ConfirmArgs,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ConfirmArgs {
    /// Do not ask. Needed where there is no terminal.
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// With --yes: also run ways back that the folder does not have, as the database has them on record.
    #[arg(long, requires = "yes")]
    pub(crate) from_record: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BaselineArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// The newest version that the database has.
    pub(crate) version: i64,
    /// Why, for the history.
    #[arg(long)]
    pub(crate) reason: String,
    /// Do not compare the database with what the migrations make.
    #[arg(long)]
    pub(crate) unchecked: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Check all files, each as a deployment of its own. By default, those that are pending in the database; all if no database is given.
    #[arg(long, conflicts_with_all = ["after", "dump"])]
    pub(crate) all: bool,
    /// Check the files after this version.
    #[arg(long, value_name = "VERSION")]
    pub(crate) after: Option<i64>,
    /// Restore this dump of `pg_dump` first, and check the files that it does not have on record: then durations mean something.
    #[arg(long, value_name = "FILE")]
    pub(crate) dump: Option<PathBuf>,
    /// Show for each statement how long it took, its locks, and the tables that it wrote anew or read as a whole.
    #[arg(long)]
    pub(crate) trace: bool,
    /// Leave out this rule.
    #[arg(long, value_name = "RULE", value_parser = rule)]
    pub(crate) without: Vec<Rule>,
    /// Also print what is found as annotations of GitHub Actions.
    #[arg(long, conflicts_with = "json")]
    pub(crate) github: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DriftArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

fn rule(name: &str) -> Result<Rule, String> {
    Rule::of(name).ok_or_else(|| {
        let names: Vec<&str> = Rule::ALL.iter().map(|rule| rule.name()).collect();
        format!("the rules are {}", names.join(", "))
    })
}

/// The server that starts by itself.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// SQL that it runs first, such as `create role app`.
    #[arg(long, value_name = "FILE")]
    pub(crate) setup: Option<PathBuf>,
    /// Leave out what makes this extension, which it does not have.
    #[arg(long, value_name = "NAME")]
    pub(crate) skip_extension: Vec<String>,
    /// Leave this table out of comparisons, such as that of another migrator.
    #[arg(long, value_name = "TABLE")]
    pub(crate) ignore: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct NewArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// What it does, in a few words.
    pub(crate) name: String,
    /// One file without a way back. By default there are two, unless the folder has files of this kind only.
    #[arg(long)]
    pub(crate) simple: bool,
    /// A file in the folder `repeatable`, which is applied after the others whenever it says something new: for a view or a function.
    #[arg(long, conflicts_with = "simple")]
    pub(crate) repeatable: bool,
    /// Let the up file be this step of the program, which runs in a transaction.
    #[arg(long, value_name = "STEP", conflicts_with_all = ["repeatable", "batches"])]
    pub(crate) step: Option<String>,
    /// Let the up file be this step of the program, which runs in batches.
    #[arg(long, value_name = "STEP", conflicts_with = "repeatable")]
    pub(crate) batches: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RepairArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// The version that was cut off.
    pub(crate) version: i64,
    /// What is true of it.
    #[arg(value_enum)]
    pub(crate) found: Found,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Found {
    /// The statement that was cut off is done: the next run goes on after it.
    StatementDone,
    /// The statement that was cut off left nothing: the next run begins with it.
    StatementUndone,
    /// The whole migration is applied.
    Applied,
    /// The migration is not applied, and nothing is left of it.
    NotApplied,
}

#[derive(Debug, Args)]
pub(crate) struct ReblessArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// These versions, whatever was changed in their files. By default, all whose comments or formatting alone were changed.
    pub(crate) versions: Vec<i64>,
    /// Why, for the history.
    #[arg(long)]
    pub(crate) reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Of this version only.
    #[arg(long = "of", value_name = "VERSION")]
    pub(crate) version: Option<i64>,
}
