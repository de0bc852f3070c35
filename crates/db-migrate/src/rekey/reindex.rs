//! Filling a blind index from the sealed column whose values it finds.

use std::fmt;
use std::sync::Arc;

use db_core::Config;
use db_core::encryption::{BlindIndex, Declared, Strategy, Zeroizing};

use super::RekeyError;
use crate::batches::{Batches, Change, Pace, Report, Row};

/// The text that is indexed, of the bytes of a value; `None` if they have none.
type Text = Arc<dyn Fn(&[u8]) -> Option<Zeroizing<String>> + Send + Sync>;

/// Computes a blind index anew, while the service runs: after its key has changed, or in a column that was added.
///
/// An index that is not pinned to a key follows the primary one, and look-ups by `any` find rows under each key meanwhile. Run this
/// before a key is destroyed: what is under its key is not found any more afterwards.
///
/// A unique index is pinned to its key. Its key changes in these steps, and look-ups work throughout:
///
/// 1. Add a column, with `create unique index concurrently`. Declare it with [`under`](db_core::encryption::DeclareIndex::under) the new
///    key, and have all writers store both indexes.
/// 2. Run this for the new column. The unique index of the first one still refuses duplicates.
/// 3. Look up by the new column, and set it not null. Have writers store the new index only.
/// 4. Drop the first column.
#[derive(Clone)]
pub struct Reindex {
    column: Declared,
    index: BlindIndex,
    strategy: Arc<dyn Strategy>,
    text: Text,
    pace: Pace,
}

impl Reindex {
    /// Fills `index` from the values of `column`, which are text. `strategy` unseals them.
    #[must_use]
    pub fn new(column: Declared, index: BlindIndex, strategy: Arc<dyn Strategy>) -> Self {
        let text: Text = Arc::new(|bytes| std::str::from_utf8(bytes).ok().map(|text| text.to_owned().into()));
        Self { column, index, strategy, text, pace: Pace::default() }
    }

    /// Says which text is indexed of a value's bytes, such as a field of its JSON. `None` leaves the index of the row null.
    #[must_use]
    pub fn text(mut self, text: impl Fn(&[u8]) -> Option<Zeroizing<String>> + Send + Sync + 'static) -> Self {
        self.text = Arc::new(text);
        self
    }

    /// How fast to go.
    #[must_use]
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// Runs until every row has the index of its value, or until `stop` ends. A row that is stored meanwhile keeps what its writer
    /// stored.
    ///
    /// Dropping the future ends it within a batch, too. A later call resumes.
    ///
    /// # Errors
    ///
    /// [`RekeyError::Batches`]; a duplicate in a unique index is one (23505). What was stored stays.
    pub async fn run(&self, config: &Config, stop: impl Future<Output = ()>) -> Result<Report, RekeyError> {
        let name = format!("fill the {}", self.index.declared());
        let this = self.clone();
        let batches = Batches::new(name, self.column.relation(), move |row| this.change(row))
            .writes(self.index.declared().stored_column())
            // A writer that changes the value between reading and storing has stored the index of its own.
            .reads(self.column.stored_column())
            .key(self.column.key_columns().iter().map(|(name, _)| name.as_ref().to_owned()))
            .pace(self.pace);
        let done = batches.run(config, stop).await;
        done.map_err(|cause| RekeyError::Batches {
            column: self.index.declared().to_string(),
            cause: Box::new(cause),
        })
    }

    fn change(&self, row: &Row) -> Change {
        let before = row.bytes(0);
        let Some(sealed) = row.bytes(1) else {
            return if before.is_none() { Change::Unchanged } else { Change::To(vec![None]) };
        };
        let plain = self
            .column
            .place(row.key().to_vec())
            .and_then(|place| self.strategy.unseal(sealed, &place))
            .and_then(|plain| (self.text)(&plain).map(|text| self.index.of(&text)).transpose());
        match plain {
            Ok(after) if after.as_deref() == before => Change::Unchanged,
            Ok(after) => Change::To(vec![after]),
            Err(error) => Change::Cannot(error.to_string()),
        }
    }
}

impl fmt::Debug for Reindex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reindex({} of {})", self.index.declared(), self.column)
    }
}
