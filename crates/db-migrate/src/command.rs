//! `rekey` and `verify`, for the command line of a program.
//!
//! ```
//! use clap::Parser;
//! use db_migrate::command::SealedColumns;
//!
//! #[derive(Parser)]
//! enum Cli {
//!     /// What the program does.
//!     Serve,
//!     #[command(flatten)]
//!     Sealed(SealedColumns),
//! }
//!
//! let Cli::Sealed(command) = Cli::parse_from(["shop", "rekey", "--workers", "2"]) else { panic!("not serve") };
//! // command.run(&config, &columns.declared(), keyring, &mut stdout, ctrl_c).await
//! # drop(command);
//! ```

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use clap::{Args, Subcommand, ValueEnum};
use db_core::Config;
use db_core::encryption::{Declared, KeyType, Original, OriginalError, Strategy};
use serde_json::json;

use crate::batches::{BatchError, Pace, Progress};
use crate::rekey::{Counts, Mode, MoveIn, Obstacles, Rekey, RekeyError, Rekeyed, obstacles, verify};

/// Rows that cannot be re-keyed and are printed, for each column.
const SHOWN: usize = 20;

/// The subcommands about sealed columns.
#[derive(Debug, Subcommand)]
pub enum SealedColumns {
    /// Change the key, or the form, of the values in sealed columns, while the service runs.
    ///
    /// Values are stored in batches, each only if nobody has changed the row since. Ctrl-C ends it within a batch, and the next call
    /// resumes. Exits with 1 when values are left that could not be changed.
    Rekey(RekeyArgs),
    /// Count the values of sealed columns by the key that they are sealed under. Changes nothing.
    Verify(VerifyArgs),
}

/// What `rekey` takes.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct RekeyArgs {
    /// What becomes of the values.
    #[arg(value_enum, default_value_t = Action::Rotate)]
    action: Action,
    #[command(flatten)]
    which: VerifyArgs,
    /// For move-in: what to move where. May be repeated.
    ///
    /// `customers.iban=iban_text,nonce` moves a value of the original form, with its nonce, into a declared column;
    /// `customers.iban=iban_text` moves plain text. For a table that the program does not declare, add the key's columns and their types:
    /// `teams.legacy_auth_sealed=legacy_auth,nonce(id integer)`. The names before `=` are those that the values are bound to. A schema
    /// comes first: `ci.teams.legacy_auth_sealed=…`.
    #[arg(long = "move", value_name = "COLUMN=OLD", required_if_eq("action", "move-in"))]
    moves: Vec<Move>,
    #[command(flatten)]
    original: OriginalKeys,
    /// For move-in: leave the old columns as they are, for a program that still reads them. By default, they become null.
    #[arg(long)]
    keep_old: bool,
    /// Count what would be done, list the triggers, policies and foreign tables that would be met, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// The pause after a batch, as a multiple of the time that the batch took. 0 goes as fast as the server can.
    #[arg(long, value_name = "TIMES", default_value_t = 3.0)]
    pause: f64,
    /// The most rows in a second.
    #[arg(long, value_name = "ROWS")]
    rows_per_second: Option<u32>,
    /// Wait while a standby has to replay more than this number of bytes.
    #[arg(long, value_name = "BYTES")]
    max_replication_lag: Option<u64>,
    /// Workers, each with a connection.
    #[arg(long, value_name = "N", default_value_t = 1)]
    workers: usize,
    /// End with an error at the first value that cannot be unsealed, such as one of an unknown key. By default, it is listed.
    #[arg(long)]
    stop_at_unknown: bool,
    /// Fire no triggers for the rows that are stored. The role must be allowed to.
    #[arg(long)]
    without_triggers: bool,
}

/// What `verify` takes.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Only this column, by its declared name, such as `customers.iban`. May be repeated.
    #[arg(long = "column", value_name = "TABLE.COLUMN")]
    columns: Vec<String>,
    /// Print each column as a JSON object on a line of its own.
    #[arg(long)]
    json: bool,
}

/// The keys of the original form.
#[derive(Args)]
#[expect(clippy::struct_field_names, reason = "they are the flags' names")]
struct OriginalKeys {
    /// For move-in: a file with the key of values in the original form, as raw bytes. May be repeated.
    #[arg(long, value_name = "FILE")]
    original_key_file: Vec<PathBuf>,
    /// For move-in: such a key in hexadecimal digits.
    #[arg(
        long,
        value_name = "HEX",
        env = "ORIGINAL_ENCRYPTION_KEY_HEX",
        hide_env_values = true,
        value_delimiter = ','
    )]
    original_key_hex: Vec<String>,
    /// For move-in: such a key in base64.
    #[arg(
        long,
        value_name = "BASE64",
        env = "ORIGINAL_ENCRYPTION_KEY_BASE64",
        hide_env_values = true,
        value_delimiter = ','
    )]
    original_key_base64: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Seal sealed values under the key that seals now.
    Rotate,
    /// Seal plain values, too.
    Encrypt,
    /// Store the plain values.
    Decrypt,
    /// Seal the values of other columns.
    MoveIn,
}

/// `[SCHEMA.]TABLE.COLUMN=VALUE[,NONCE][(KEY TYPE, …)]`
#[derive(Debug, Clone, PartialEq, Eq)]
struct Move {
    schema: Option<String>,
    table: String,
    column: String,
    value: String,
    nonce: Option<String>,
    key: Vec<(String, KeyType)>,
}

/// Why a command about sealed columns failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// No such column is declared.
    #[error("no sealed column {0} is declared{hint}", hint = hint(.1))]
    Unknown(String, Vec<String>),
    /// A key of the original form cannot be used.
    #[error("an original key cannot be used: {0}")]
    OriginalKey(#[from] OriginalError),
    /// A file with a key cannot be read.
    #[error("the key file {file} cannot be read: {reason}")]
    File {
        /// The file.
        file: String,
        /// The system's message.
        reason: io::Error,
    },
    /// Re-keying failed.
    #[error(transparent)]
    Rekey(#[from] RekeyError),
    /// Counting failed.
    #[error(transparent)]
    Count(#[from] BatchError),
    /// The result could not be printed.
    #[error("the result could not be printed: {0}")]
    Print(#[from] io::Error),
}

fn hint(declared: &[String]) -> String {
    if declared.is_empty() { String::new() } else { format!("; these are: {}", declared.join(", ")) }
}

impl SealedColumns {
    /// Does it, and writes the result to `out`; progress goes to stderr. Returns false when values are left that were to be changed.
    /// `stop` ends `rekey` within a batch.
    ///
    /// Dropping the future ends it, too. A later call resumes.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn run(
        &self,
        config: &Config,
        declared: &[Declared],
        strategy: Arc<dyn Strategy>,
        out: &mut (impl Write + Send),
        stop: impl Future<Output = ()>,
    ) -> Result<bool, CommandError> {
        match self {
            Self::Verify(args) => {
                let counts = verify(config, &args.chosen(declared)?).await?;
                let sealing = strategy.sealing_key();
                let mut is_done = true;
                for count in &counts {
                    is_done &= sealing.is_none_or(|key| count.other_than(key) == 0);
                    if args.json {
                        writeln!(out, "{}", json!(count))?;
                    } else {
                        writeln!(out, "{}", Counted(count))?;
                    }
                }
                Ok(is_done)
            }
            Self::Rekey(args) => args.run(config, declared, strategy, out, stop).await,
        }
    }
}

impl RekeyArgs {
    async fn run(
        &self,
        config: &Config,
        declared: &[Declared],
        strategy: Arc<dyn Strategy>,
        out: &mut (impl Write + Send),
        stop: impl Future<Output = ()>,
    ) -> Result<bool, CommandError> {
        let work = self.work(declared)?;
        if self.dry_run {
            return self.dry_run(config, work, strategy, out).await;
        }
        // Once it has ended, it is not polled again.
        let is_stopped = AtomicBool::new(false);
        let mut stop = std::pin::pin!(stop);
        let mut is_complete = true;
        for (column, mode) in work {
            let name = column.to_string();
            let rekey = Rekey::new(column, Arc::clone(&strategy), mode)
                .pace(self.pace())
                .stop_at_refusals(self.stop_at_unknown)
                .without_triggers(self.without_triggers)
                .on_progress(move |progress| show(&name, progress));
            let stopping = async {
                stop.as_mut().await;
                is_stopped.store(true, Relaxed);
            };
            let done = rekey.run(config, stopping).await?;
            if io::stderr().is_terminal() {
                eprintln!();
            }
            is_complete &= done.is_complete();
            self.print(&done, out)?;
            if is_stopped.load(Relaxed) {
                return Ok(false);
            }
        }
        Ok(is_complete)
    }

    async fn dry_run(
        &self,
        config: &Config,
        work: Vec<(Declared, Mode)>,
        strategy: Arc<dyn Strategy>,
        out: &mut (impl Write + Send),
    ) -> Result<bool, CommandError> {
        for (column, mode) in work {
            let columns = [column];
            let counts = verify(config, &columns).await?;
            let met = obstacles(config, &columns).await?;
            let [column] = columns;
            let left = Rekey::new(column, Arc::clone(&strategy), mode).left(config).await?;
            for (count, met) in counts.iter().zip(&met) {
                if self.which.json {
                    writeln!(out, "{}", json!({ "left": left, "counts": count, "met": met }))?;
                } else {
                    writeln!(out, "{}\n  to be changed: {left}{}", Counted(count), Met(met))?;
                }
            }
        }
        Ok(true)
    }

    fn pace(&self) -> Pace {
        Pace::default()
            .pause(self.pause)
            .rows_per_second(self.rows_per_second)
            .max_replication_lag(self.max_replication_lag)
            .workers(self.workers)
    }

    fn work(&self, declared: &[Declared]) -> Result<Vec<(Declared, Mode)>, CommandError> {
        let mode = match self.action {
            Action::Rotate => Mode::Rotate,
            Action::Encrypt => Mode::Encrypt,
            Action::Decrypt => Mode::Decrypt,
            Action::MoveIn => {
                return self
                    .moves
                    .iter()
                    .map(|wanted| Ok((wanted.column(declared)?, self.mode(wanted)?)))
                    .collect();
            }
        };
        Ok(self.which.chosen(declared)?.into_iter().map(|column| (column, mode.clone())).collect())
    }

    fn mode(&self, wanted: &Move) -> Result<Mode, CommandError> {
        let original = self.original.read()?;
        let moved = match &wanted.nonce {
            Some(nonce) => MoveIn::original(&wanted.value, nonce, original),
            None => {
                MoveIn::new([&wanted.value], |texts| Ok(texts[0].map(|text| text.as_bytes().to_vec().into())))
            }
        };
        Ok(Mode::MoveIn(if self.keep_old { moved.keep_old() } else { moved }))
    }

    fn print(&self, done: &Rekeyed, out: &mut impl Write) -> io::Result<()> {
        let report = &done.report;
        if self.which.json {
            let refusals: Vec<_> = report
                .refusals
                .iter()
                .map(|refusal| json!({ "key": refusal.key, "reason": refusal.reason }))
                .collect();
            let done = json!({
                "column": done.column, "is_finished": report.is_finished, "read": report.read, "written": report.written,
                "left": done.left, "refused": report.refused, "refusals": refusals, "locked": report.locked,
                "seconds": report.took.as_secs_f64(),
            });
            return writeln!(out, "{done}");
        }
        let seconds = report.took.as_secs_f64();
        writeln!(
            out,
            "{}: {} values stored in {seconds:.1} s{}",
            done.column,
            report.written,
            match done.left {
                Some(left) => format!(", {left} left"),
                None => ", stopped before the end".to_owned(),
            }
        )?;
        for refusal in report.refusals.iter().take(SHOWN) {
            writeln!(out, "  {refusal}")?;
        }
        if report.refused > SHOWN as u64 {
            writeln!(out, "  and {} more", report.refused - SHOWN as u64)?;
        }
        for key in report.locked.iter().take(SHOWN) {
            writeln!(out, "  the row ({}) stayed locked by others", key.join(", "))?;
        }
        Ok(())
    }
}

impl VerifyArgs {
    fn chosen(&self, declared: &[Declared]) -> Result<Vec<Declared>, CommandError> {
        let sealed = || declared.iter().filter(|column| !column.is_index());
        if self.columns.is_empty() {
            return Ok(sealed().cloned().collect());
        }
        let chosen = self.columns.iter().map(|name| find(declared, name));
        chosen.collect()
    }
}

fn find(declared: &[Declared], name: &str) -> Result<Declared, CommandError> {
    let sealed = || declared.iter().filter(|column| !column.is_index());
    let found = sealed().find(|column| column.to_string() == name).cloned();
    found.ok_or_else(|| CommandError::Unknown(name.to_owned(), sealed().map(ToString::to_string).collect()))
}

impl Move {
    /// The declared column, or one as it is described.
    fn column(&self, declared: &[Declared]) -> Result<Declared, CommandError> {
        if self.key.is_empty() {
            return find(declared, &format!("{}.{}", self.table, self.column));
        }
        let column = Declared::new(self.table.clone(), self.column.clone());
        let column = match &self.schema {
            Some(schema) => column.schema(schema.clone()),
            None => column,
        };
        Ok(self.key.iter().fold(column, |column, (name, kind)| column.key(name.clone(), *kind)))
    }
}

impl std::str::FromStr for Move {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (place, rest) = text.split_once('=').ok_or("write TABLE.COLUMN=VALUE,NONCE")?;
        let (old, key) = match rest.split_once('(') {
            Some((old, key)) => (old, key.strip_suffix(')').ok_or("the key's columns end with )")?),
            None => (rest, ""),
        };
        let (schema, table, column) = match *place.split('.').collect::<Vec<_>>() {
            [table, column] => (None, table, column),
            [schema, table, column] => (Some(schema.to_owned()), table, column),
            _ => {
                return Err(
                    "before = stand a table and a column, such as teams.legacy_auth_sealed".to_owned()
                );
            }
        };
        let (value, nonce) = match *old.split(',').map(str::trim).collect::<Vec<_>>() {
            [value] if !value.is_empty() => (value, None),
            [value, nonce] => (value, Some(nonce.to_owned())),
            _ => return Err("after = stand the column of the value and that of its nonce".to_owned()),
        };
        let key = key.split(',').map(str::trim).filter(|column| !column.is_empty());
        let key = key.map(|column| {
            let (name, kind) =
                column.split_once(' ').ok_or(format!("the key column {column} has no type"))?;
            let kind = KeyType::named(kind.trim()).ok_or(format!(
                "a key column of type {kind} cannot be used: its text is not always the same"
            ))?;
            Ok((name.to_owned(), kind))
        });
        let key = key.collect::<Result<_, String>>()?;
        let (table, column, value) = (table.to_owned(), column.to_owned(), value.to_owned());
        Ok(Self { schema, table, column, value, nonce, key })
    }
}

impl OriginalKeys {
    fn read(&self) -> Result<Original, CommandError> {
        let mut original = Original::default();
        for file in &self.original_key_file {
            let read = std::fs::read(file);
            let failed = |reason| CommandError::File { file: file.display().to_string(), reason };
            let key = read.map_err(failed)?;
            // An editor ends a file with a line feed. No key has a length that is one more than another key's.
            let is_line = [17, 25, 33].contains(&key.len()) && key.ends_with(b"\n");
            original = original.with_key(&key[..key.len() - usize::from(is_line)])?;
        }
        for key in &self.original_key_hex {
            original = original.with_hex_key(key)?;
        }
        for key in &self.original_key_base64 {
            original = original.with_base64_key(key)?;
        }
        Ok(original)
    }
}

/// Shows no key.
impl fmt::Debug for OriginalKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys =
            self.original_key_file.len() + self.original_key_hex.len() + self.original_key_base64.len();
        write!(f, "OriginalKeys({keys})")
    }
}

/// One line that is written again and again on a terminal; elsewhere a line each time.
fn show(column: &str, progress: &Progress) {
    let of = progress.estimate.map(|rows| format!(" of about {rows}")).unwrap_or_default();
    let waiting = if progress.waiting > 0 {
        format!(", {} to be tried again", progress.waiting)
    } else {
        String::new()
    };
    let Progress { read, rows_per_second, .. } = *progress;
    let line = format!("{column}: {read}{of} rows, {rows_per_second:.0} rows/s{waiting}");
    if io::stderr().is_terminal() {
        eprint!("\r{line:<78}");
    } else {
        eprintln!("{line}");
    }
}

struct Counted<'a>(&'a Counts);

impl fmt::Display for Counted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { column, keys, plain, empty, newer, cut, null, .. } = self.0;
        write!(f, "{column}: {} rows", self.0.rows())?;
        for (key, rows) in keys {
            write!(f, "\n  under key {key}: {rows}")?;
        }
        for (what, rows) in [
            ("not sealed", plain),
            ("of these, empty", empty),
            ("of a newer form", newer),
            ("cut off", cut),
            ("null", null),
        ] {
            if *rows > 0 {
                write!(f, "\n  {what}: {rows}")?;
            }
        }
        Ok(())
    }
}

struct Met<'a>(&'a Obstacles);

impl fmt::Display for Met<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Obstacles { triggers, policies, foreign_tables, .. } = self.0;
        for (what, names) in [
            ("triggers that would fire", triggers),
            ("policies of row security", policies),
            ("foreign tables", foreign_tables),
        ] {
            if !names.is_empty() {
                write!(f, "\n  {what}: {}", names.join(", "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_move_is_read_from_one_word() {
        let moved: Move =
            "ci.teams.legacy_auth_sealed=legacy_auth,nonce(id integer, tenant character varying)"
                .parse()
                .expect("a move");
        assert_eq!(moved.schema.as_deref(), Some("ci"));
        assert_eq!((&*moved.table, &*moved.column), ("teams", "legacy_auth_sealed"));
        assert_eq!((&*moved.value, moved.nonce.as_deref()), ("legacy_auth", Some("nonce")));
        assert_eq!(moved.key, [("id".to_owned(), KeyType::Integer), ("tenant".to_owned(), KeyType::Varchar)]);

        let plain: Move = "customers.iban=iban_text".parse().expect("a move");
        assert_eq!((plain.nonce, plain.key.len()), (None, 0));

        for (text, complaint) in [
            ("teams", "write TABLE.COLUMN=VALUE,NONCE"),
            ("teams=a,b", "before = stand a table and a column, such as teams.legacy_auth_sealed"),
            ("t.c=", "after = stand the column of the value and that of its nonce"),
            ("t.c=a,b(id", "the key's columns end with )"),
            ("t.c=a,b(id)", "the key column id has no type"),
            (
                "t.c=a,b(id numeric)",
                "a key column of type numeric cannot be used: its text is not always the same",
            ),
        ] {
            assert_eq!(text.parse::<Move>(), Err(complaint.to_owned()));
        }
    }
}
