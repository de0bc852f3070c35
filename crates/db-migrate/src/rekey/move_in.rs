//! Values that come from other columns.

use std::fmt;
use std::sync::Arc;

use db_core::encryption::{Declared, Original, Strategy, Zeroizing};

use crate::batches::{Batches, Change, Row};
use crate::table::quoted;

type Plain = Result<Option<Zeroizing<Vec<u8>>>, String>;
type Read = Arc<dyn Fn(&[Option<&str>]) -> Plain + Send + Sync>;

/// Moves the values of other columns of the row into the sealed column.
///
/// In the statement that stores a sealed value, the old columns become null: a row has its value in one place. So a writer of the sealed
/// column sets the old ones to null, and a value that an old program stores in them meanwhile is moved in, too.
#[derive(Clone)]
pub struct MoveIn {
    from: Vec<String>,
    keeps: bool,
    read: Read,
}

impl MoveIn {
    /// Reads the plain value by a function of the old columns' texts. `None` is null. Its error is shown and logged, so it must not
    /// repeat a value. A row whose first old column is null has nothing to move.
    pub fn new(
        from: impl IntoIterator<Item = impl Into<String>>,
        read: impl Fn(&[Option<&str>]) -> Plain + Send + Sync + 'static,
    ) -> Self {
        Self { from: from.into_iter().map(Into::into).collect(), keeps: false, read: Arc::new(read) }
    }

    /// Reads values in the form of Concourse: `value` is a column of text, and `nonce` the one beside it.
    #[must_use]
    pub fn original(value: impl Into<String>, nonce: impl Into<String>, original: Original) -> Self {
        Self::new([value.into(), nonce.into()], move |texts| match texts {
            [Some(value), nonce] => original.read(value, *nonce).map(Some).map_err(|error| error.to_string()),
            _ => Ok(None),
        })
    }

    /// Leaves the old columns as they are, and moves in a value only where the sealed column is null. For an old program that still
    /// reads them: what it writes to a row that was moved is not moved again.
    #[must_use]
    pub fn keep_old(mut self) -> Self {
        self.keeps = true;
        self
    }

    pub(super) fn columns(&self, batches: Batches) -> Batches {
        self.from.iter().fold(batches, |batches, column| {
            if self.keeps { batches.reads(column) } else { batches.writes(column) }
        })
    }

    pub(super) fn pending(&self, stored: &str) -> String {
        let has_value =
            self.from.first().map_or("false".to_owned(), |column| format!("{} is not null", quoted(column)));
        if self.keeps { format!("{has_value} and {} is null", quoted(stored)) } else { has_value }
    }

    pub(super) fn change(&self, column: &Declared, strategy: &dyn Strategy, row: &Row) -> Change {
        let texts: Vec<Option<&str>> = (1..=self.from.len()).map(|nth| row.text(nth)).collect();
        if texts.first().is_none_or(Option::is_none) || self.keeps && row.bytes(0).is_some() {
            return Change::Unchanged;
        }
        let sealed = (self.read)(&texts).and_then(|plain| {
            let Some(plain) = plain else { return Ok(None) };
            let sealed = column.place(row.key().to_vec()).and_then(|place| strategy.seal(&plain, &place));
            sealed.map(Some).map_err(|error| error.to_string())
        });
        match sealed {
            Ok(None) if self.keeps => Change::Unchanged,
            Ok(sealed) if self.keeps => Change::To(vec![sealed]),
            Ok(sealed) => Change::To([vec![sealed], vec![None; self.from.len()]].concat()),
            Err(reason) => Change::Cannot(reason),
        }
    }
}

impl fmt::Debug for MoveIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MoveIn").field("from", &self.from).field("keeps", &self.keeps).finish_non_exhaustive()
    }
}
