//! Changes the key, or the form, of the values in a sealed column while the service runs.
//!
//! [`Rekey`] walks a declared column in [batches](crate::batches). It stores a value if nobody has changed the row since it was read, so a
//! concurrent writer keeps its own. At any moment, also after a `kill -9`, each value is sealed under the old or the new key, and
//! unseals by a keyring that has both.
//!
//! ```
//! # db_testkit::run(async |db| {
//! # sqlx::raw_sql("create table customers (id bigint primary key, iban bytea)").execute(&db.pool()).await.unwrap();
//! # let config = db_core::Config::from_url(&db.url()).unwrap();
//! use std::sync::Arc;
//! use db_core::encryption::{Declared, Key, KeyType, Keyring};
//! use db_migrate::rekey::{Mode, Rekey, verify};
//!
//! let iban = Declared::new("customers", "iban").key("id", KeyType::BigInt);
//! # let (old, new) = (Key::generate()?, Key::generate()?);
//! let keyring = Arc::new(Keyring::new(&new).with_retired(&old)?);
//!
//! let done = Rekey::new(iban.clone(), keyring, Mode::Rotate).run(&config, std::future::pending()).await?;
//!
//! assert!(done.is_complete());
//! assert!(verify(&config, &[iban]).await?[0].keys.is_empty(), "the table is empty");
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! # What it does not do
//!
//! It is no erasure. Old values stay in dead rows until vacuum removes them, and in WAL, standbys and backups. Keep the old key as
//! long as your backups. Somebody who knows the old key may have read the values, too.

mod at_open;
mod move_in;
mod reindex;
mod survey;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use db_core::Config;
use db_core::encryption::{Context, Declared, EncryptionError, NoEncryption, Strategy, Zeroizing};

use crate::batches::{BatchError, Batches, Change, Pace, Progress, Report, Row, ShowProgress};

pub use at_open::{AtOpen, Background, BackgroundState, at_open};
pub use move_in::MoveIn;
pub use reindex::Reindex;
pub use survey::{Counts, Obstacles, obstacles, verify};

/// The passes over a column in which others keep storing values that have to be changed.
const PASSES: u32 = 5;

/// Re-keying of one column.
#[derive(Clone)]
pub struct Rekey {
    column: Declared,
    strategy: Arc<dyn Strategy>,
    mode: Mode,
    pace: Pace,
    patience: Option<Duration>,
    stops_at_refusals: bool,
    without_triggers: bool,
    show: Option<ShowProgress>,
}

/// What becomes of the values.
#[derive(Clone, Debug, Default)]
pub enum Mode {
    /// Sealed values are sealed under the key that seals now. A value that is not sealed is refused.
    #[default]
    Rotate,
    /// Plain values are sealed, and sealed ones as by [`Rotate`](Self::Rotate).
    Encrypt,
    /// Sealed values become plain ones.
    Decrypt,
    /// Values of other columns are sealed into this one.
    MoveIn(MoveIn),
}

/// What re-keying did with a column.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Rekeyed {
    /// The column's logical names.
    pub column: String,
    /// The work in batches; refusals and locked rows are those of the last pass.
    pub report: Report,
    /// The rows that still have to be changed, as the server counted them afterwards. `None` when re-keying was stopped.
    pub left: Option<u64>,
}

/// Why a column was not re-keyed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RekeyError {
    /// The strategy has no key that seals, so nothing says which values are done.
    #[error(
        "{column} cannot be re-keyed: there is no encryption key, or the strategy does not name the one that seals"
    )]
    NoSealingKey {
        /// The column.
        column: String,
    },
    /// A blind index has no values that unseal.
    #[error("{column} cannot be re-keyed: a blind index is computed from its column")]
    Index {
        /// The index.
        column: String,
    },
    /// A column has rows that have to be re-keyed, and opening was to be refused then.
    #[error("{column} has {}: run `rekey`, or open with re-keying", match left { Some(left) => format!("{left} values that are not sealed under the key that seals now"), None => "more rows than could be looked at in time".to_owned() })]
    Left {
        /// The column.
        column: String,
        /// The number of rows, if it is known.
        left: Option<u64>,
    },
    /// The work in batches failed.
    #[error("{column}: {cause}")]
    Batches {
        /// The column.
        column: String,
        /// The error.
        cause: Box<BatchError>,
    },
}

impl Rekey {
    /// Re-keys this column. `strategy` unseals the values, and seals them anew.
    pub fn new(column: Declared, strategy: Arc<dyn Strategy>, mode: Mode) -> Self {
        Self {
            column,
            strategy,
            mode,
            pace: Pace::default(),
            patience: None,
            stops_at_refusals: false,
            without_triggers: false,
            show: None,
        }
    }

    /// How fast to go.
    #[must_use]
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// How long to try rows that others have locked ([`Batches::patience`]).
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// Ends with an error at the first value that cannot be unsealed. By default, such rows stay as they are, and are listed.
    #[must_use]
    pub fn stop_at_refusals(mut self, stop: bool) -> Self {
        self.stops_at_refusals = stop;
        self
    }

    /// Fires no triggers ([`Batches::without_triggers`]).
    #[must_use]
    pub fn without_triggers(mut self, without: bool) -> Self {
        self.without_triggers = without;
        self
    }

    /// Calls `show` about once a second.
    #[must_use]
    pub fn on_progress(mut self, show: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        self.show = Some(Arc::new(show));
        self
    }

    /// Re-keys until the server counts no row that is left, but for those that cannot be changed, or until `stop` ends, which it
    /// then does within a batch.
    ///
    /// Dropping the future ends it within a batch, too. A later call resumes.
    ///
    /// # Errors
    ///
    /// [`RekeyError`]. What was stored stays, and unseals.
    pub async fn run(&self, config: &Config, stop: impl Future<Output = ()>) -> Result<Rekeyed, RekeyError> {
        let batches = self.batches()?;
        let failed = |cause| RekeyError::Batches { column: self.column.to_string(), cause: Box::new(cause) };
        let mut stop = std::pin::pin!(stop);
        let mut total = Report::default();
        for pass in 1.. {
            let report = batches.run(config, stop.as_mut()).await.map_err(failed)?;
            let is_finished = report.is_finished;
            total = Report {
                read: total.read + report.read,
                written: total.written + report.written,
                missed: total.missed + report.missed,
                took: total.took + report.took,
                ..report
            };
            if !is_finished {
                return Ok(Rekeyed { column: self.column.to_string(), report: total, left: None });
            }
            let left = self.left(config).await?;
            let known = total.refused + total.locked.len() as u64;
            if left <= known || pass >= PASSES {
                return Ok(Rekeyed { column: self.column.to_string(), report: total, left: Some(left) });
            }
            tracing::info!(column = %self.column, rows = left - known, "others stored values that have to be re-keyed meanwhile");
        }
        unreachable!("the last pass returns")
    }

    /// Counts the rows that have to be changed.
    ///
    /// # Errors
    ///
    /// [`RekeyError`].
    pub async fn left(&self, config: &Config) -> Result<u64, RekeyError> {
        let pending = self.pending()?;
        let counted = survey::count(config, &self.column.relation(), &pending).await;
        counted
            .map_err(|cause| RekeyError::Batches { column: self.column.to_string(), cause: Box::new(cause) })
    }

    /// The column that is re-keyed.
    #[must_use]
    pub fn column(&self) -> &Declared {
        &self.column
    }

    fn batches(&self) -> Result<Batches, RekeyError> {
        let pending = self.pending()?;
        let (column, strategy) = (self.column.clone(), Arc::clone(&self.strategy));
        let stored = self.column.stored_column().to_owned();
        let name = format!("{} {}", self.mode.name(), self.column);
        let relation = self.column.relation();
        let batches = match &self.mode {
            Mode::Rotate => Batches::new(name, relation, move |row| rotated(&column, &*strategy, row, false))
                .writes(stored),
            Mode::Encrypt => Batches::new(name, relation, move |row| rotated(&column, &*strategy, row, true))
                .writes(stored),
            Mode::Decrypt => {
                Batches::new(name, relation, move |row| decrypted(&column, &*strategy, row)).writes(stored)
            }
            Mode::MoveIn(from) => {
                let moved = from.clone();
                let batches = Batches::new(name, relation, move |row| moved.change(&column, &*strategy, row));
                from.columns(batches.writes(stored))
            }
        };
        let key = self.column.key_columns().iter().map(|(name, _)| name.as_ref().to_owned());
        let mut batches = batches
            .key(key)
            .pending(pending)
            .pace(self.pace)
            .stop_at_refusals(self.stops_at_refusals)
            .without_triggers(self.without_triggers);
        if let Some(patience) = self.patience {
            batches = batches.patience(patience);
        }
        if let Some(show) = self.show.clone() {
            batches = batches.on_progress(move |progress| show(progress));
        }
        Ok(batches)
    }

    /// The rows that have to be changed, as SQL.
    fn pending(&self) -> Result<String, RekeyError> {
        if self.column.is_index() {
            return Err(RekeyError::Index { column: self.column.to_string() });
        }
        let sealing = self.strategy.sealing_key();
        match &self.mode {
            Mode::Rotate | Mode::Encrypt => {
                let key =
                    sealing.ok_or_else(|| RekeyError::NoSealingKey { column: self.column.to_string() })?;
                Ok(format!("({}) <> '{key}'", self.column.header_sql()))
            }
            Mode::Decrypt => Ok(format!("({}) <> 'plain'", self.column.header_sql())),
            Mode::MoveIn(from) => Ok(from.pending(self.column.stored_column())),
        }
    }
}

impl Mode {
    fn name(&self) -> &'static str {
        match self {
            Self::Rotate => "rotate",
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::MoveIn(_) => "move in",
        }
    }
}

impl Rekeyed {
    /// Whether every value is as the mode wants it.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.report.is_finished && self.left == Some(0)
    }
}

impl fmt::Debug for Rekey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rekey({} {})", self.mode.name(), self.column)
    }
}

/// The value under the key that seals now.
fn rotated(column: &Declared, strategy: &dyn Strategy, row: &Row, seals_plain: bool) -> Change {
    let Some(stored) = row.bytes(0) else { return Change::Unchanged };
    change(column, row, |place| {
        let plain = match NoEncryption.unseal(stored, place) {
            Ok(plain) if seals_plain => plain,
            Ok(_) => return Err(EncryptionError::NotSealed { place: place.to_string() }),
            Err(_) => strategy.unseal(stored, place)?,
        };
        strategy.seal(&plain, place)
    })
}

/// The plain value.
fn decrypted(column: &Declared, strategy: &dyn Strategy, row: &Row) -> Change {
    let Some(stored) = row.bytes(0) else { return Change::Unchanged };
    change(column, row, |place| {
        let plain: Zeroizing<Vec<u8>> = strategy.unseal(stored, place)?;
        // Refuses what would be taken for a sealed value.
        NoEncryption.seal(&plain, place)
    })
}

fn change(
    column: &Declared,
    row: &Row,
    value: impl FnOnce(&Context) -> Result<Vec<u8>, EncryptionError>,
) -> Change {
    match column.place(row.key().to_vec()).and_then(|place| value(&place)) {
        Ok(value) => Change::To(vec![Some(value)]),
        Err(error) => Change::Cannot(error.to_string()),
    }
}
