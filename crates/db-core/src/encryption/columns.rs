//! Sealed columns, declared once.

mod catalog;
mod codec;
mod column;
mod declared;
mod index;
mod row;

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Context, EncryptionError, Strategy};
use crate::{Error, Pool};
use codec::Codec;

pub use column::Column;
pub use declared::Declared;
pub use index::{BlindIndex, DeclareIndex, Normalization};
pub use row::{KeyType, RowKey};

/// The sealed columns of a program, and its blind indexes.
///
/// Each column is declared once, and its [`Column`] seals and unseals its values. The declaration has two names for the column. The
/// logical ones are authenticated with each value and must never change. The physical ones say where the column is stored, and
/// change when it is renamed. [`check`](Self::check) compares the physical ones with the database; `db_layer::open` does so with
/// the columns that its options have.
///
/// ```
/// use std::sync::Arc;
/// use db_core::encryption::{Columns, Key, KeyType, Keyring};
///
/// let columns = Columns::default();
/// let iban = columns.declare::<String>("customers", "iban").key("id", KeyType::BigInt).text();
/// columns.unlock(Arc::new(Keyring::new(&Key::generate()?)))?;
///
/// let sealed = iban.seal(17, &"DE02 1203 0000 0000 2020 51".to_owned())?;
///
/// assert_eq!(iban.unseal(17, &sealed)?, "DE02 1203 0000 0000 2020 51");
/// assert!(iban.unseal(18, &sealed).is_err());
/// # Ok::<(), db_core::encryption::EncryptionError>(())
/// ```
///
/// Clones are of the same columns. They belong to one database: its keys are theirs.
#[derive(Clone, Default)]
pub struct Columns {
    shared: Arc<Shared>,
}

#[derive(Default)]
pub(super) struct Shared {
    strategy: OnceLock<Arc<dyn Strategy>>,
    declared: Mutex<Vec<Declared>>,
}

/// Some declared columns do not fit the database, or it could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ColumnsError {
    /// What does not fit, all of it.
    #[error("the declared columns do not fit the database:\n  {}", .0.join("\n  "))]
    Misfits(Vec<String>),
    /// The database did not answer.
    #[error("the declared columns could not be compared with the database: {0}")]
    Database(#[from] Error),
}

impl Columns {
    /// Begins to declare a column by its logical names: those that its values are bound to.
    ///
    /// The [key](Declare::key) of its rows must be said, and one of [`json`](Declare::json), [`text`](Declare::text) and
    /// [`bytes`](Declare::bytes) ends the declaration. A mistake in it is an error of [`check`](Self::check).
    #[must_use = "a column is declared by `json`, `text` or `bytes`"]
    pub fn declare<T>(&self, table: &'static str, column: &'static str) -> Declare<T> {
        Declare {
            shared: Arc::clone(&self.shared),
            declared: Declared::new(table, column),
            value: PhantomData,
        }
    }

    /// Begins to declare a blind index by the logical names of the column whose values it finds. [`DeclareIndex::build`] ends
    /// the declaration.
    ///
    /// What it gives away: rows with equal values have equal indexes. A reader of the table can count them, and can guess the values
    /// of a column with few of them, such as a status. [Truncation](DeclareIndex::truncated) makes different values look
    /// equal, too. The index needs its key to be computed, so nobody without it can try values out.
    #[must_use = "an index is declared by `build`"]
    pub fn index(&self, table: &'static str, column: &'static str) -> DeclareIndex {
        DeclareIndex::new(Arc::clone(&self.shared), table, column)
    }

    /// Gives the columns their keys, once. Until then, sealing and unsealing fail.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::Unlocked`] when they have keys already.
    pub fn unlock(&self, strategy: Arc<dyn Strategy>) -> Result<(), EncryptionError> {
        self.shared.strategy.set(strategy).map_err(|_| EncryptionError::Unlocked)
    }

    /// Whether something is declared, and nothing can be sealed or unsealed yet.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.shared.strategy.get().is_none() && !self.shared.declared().is_empty()
    }

    /// Everything that is declared so far, in the order of the declarations.
    #[must_use]
    pub fn declared(&self) -> Vec<Declared> {
        self.shared.declared().clone()
    }

    /// Compares the declarations with the tables of the database, by one statement.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`ColumnsError::Misfits`] with everything that does not fit: a table, a column or a key column that is not there; a sealed
    /// column or an index that is not `bytea`, or is generated; a key column of another type than declared, or of a type whose text
    /// depends on settings of the session; a key that is not unique; a unique index that the table does not have; a column that
    /// is declared twice. [`ColumnsError::Database`].
    pub async fn check(&self, pool: &Pool) -> Result<(), ColumnsError> {
        let declared = self.shared.declared().clone();
        if declared.is_empty() {
            return Ok(());
        }
        let misfits = catalog::misfits(&declared, &catalog::tables(pool, &declared).await?);
        if misfits.is_empty() { Ok(()) } else { Err(ColumnsError::Misfits(misfits)) }
    }
}

impl fmt::Debug for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.shared.declared().iter().map(ToString::to_string)).finish()
    }
}

impl Shared {
    fn strategy(&self, place: &Context) -> Result<&dyn Strategy, EncryptionError> {
        self.strategy
            .get()
            .map(AsRef::as_ref)
            .ok_or_else(|| EncryptionError::Locked { place: place.to_string() })
    }

    fn declared(&self) -> std::sync::MutexGuard<'_, Vec<Declared>> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A column that is being declared.
#[must_use = "a column is declared by `json`, `text` or `bytes`"]
pub struct Declare<T> {
    shared: Arc<Shared>,
    declared: Declared,
    value: PhantomData<fn() -> T>,
}

impl<T> Declare<T> {
    /// Adds a column of the rows' key by its physical name: usually the primary key, else the columns of a unique index. The
    /// key must never change while a value is stored.
    ///
    /// For several key columns, call it once for each, and give `seal` and `unseal` a tuple in the same order. A tenant is a
    /// part of the key.
    pub fn key(mut self, column: &'static str, kind: KeyType) -> Self {
        self.declared = self.declared.key(column, kind);
        self
    }

    /// Says where the column is stored, if the physical names are not the logical ones.
    pub fn stored_in(mut self, table: &'static str, column: &'static str) -> Self {
        self.declared = self.declared.stored_in(table, column);
        self
    }

    /// The schema of the table; without it, the `search_path` finds the table.
    pub fn schema(mut self, schema: &'static str) -> Self {
        self.declared = self.declared.schema(schema);
        self
    }

    /// Hides the lengths of the values, as [`Context::padded`] does.
    pub fn padded(mut self, multiple: u16) -> Self {
        self.declared = self.declared.padded(multiple);
        self
    }

    /// Stores values as JSON.
    #[must_use]
    pub fn json(self) -> Column<T>
    where
        T: Serialize + DeserializeOwned,
    {
        self.finish(Codec::json())
    }

    /// Stores values as the text that `Display` writes and `FromStr` reads.
    #[must_use]
    pub fn text(self) -> Column<T>
    where
        T: fmt::Display + std::str::FromStr,
    {
        self.finish(Codec::text())
    }

    /// Stores values as their bytes.
    #[must_use]
    pub fn bytes(self) -> Column<T>
    where
        T: AsRef<[u8]> + From<Vec<u8>>,
    {
        self.finish(Codec::bytes())
    }

    fn finish(self, codec: Codec<T>) -> Column<T> {
        self.shared.declared().push(self.declared.clone());
        Column::new(self.shared, self.declared, codec)
    }
}

impl<T> fmt::Debug for Declare<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Declare({})", self.declared)
    }
}
