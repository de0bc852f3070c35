//! A declared column.

use std::fmt;
use std::sync::Arc;

use super::Shared;
use super::codec::Codec;
use super::declared::Declared;
use super::row::RowKey;
use crate::encryption::{EncryptionError, Sealed};

/// A declared column of values of type `T`: it seals and unseals them. Clones are of the same column.
pub struct Column<T> {
    shared: Arc<Shared>,
    declared: Arc<Declared>,
    codec: Codec<T>,
}

impl<T> Column<T> {
    pub(super) fn new(shared: Arc<Shared>, declared: Declared, codec: Codec<T>) -> Self {
        Self { shared, declared: Arc::new(declared), codec }
    }

    /// The declaration: where the column is stored, and the key of its rows.
    #[must_use]
    pub fn declared(&self) -> &Declared {
        &self.declared
    }

    /// Seals a value for the row of this key.
    ///
    /// The row must be the one that the value is written to. An `insert … on conflict do update` may write to another row than
    /// the one that it would insert: there, declare the columns of `on conflict` as the key.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::Locked`] before [`Columns::unlock`](super::Columns::unlock), [`EncryptionError::RowKey`] for a key of
    /// another number of columns, [`EncryptionError::Type`] when the value cannot be written in the declared form, and those of the
    /// strategy.
    pub fn seal(&self, key: impl RowKey, value: &T) -> Result<Sealed<T>, EncryptionError> {
        let place = self.declared.place(key.texts())?;
        let strategy = self.shared.strategy(&place)?;
        let plain =
            (self.codec.encode)(value).ok_or_else(|| EncryptionError::Type { place: place.to_string() })?;
        strategy.seal(&plain, &place).map(Sealed::from_bytes)
    }

    /// Unseals the value of the row of this key.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::Locked`], [`EncryptionError::RowKey`], [`EncryptionError::Type`] when the value is not a `T` in the
    /// declared form, and those of the strategy, each with table, column and row.
    pub fn unseal(&self, key: impl RowKey, sealed: &Sealed<T>) -> Result<T, EncryptionError> {
        let place = self.declared.place(key.texts())?;
        let plain = self.shared.strategy(&place)?.unseal(sealed.as_bytes(), &place)?;
        (self.codec.decode)(&plain).ok_or_else(|| EncryptionError::Type { place: place.to_string() })
    }
}

impl<T> Clone for Column<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), declared: Arc::clone(&self.declared), codec: self.codec }
    }
}

impl<T> fmt::Debug for Column<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Column({})", self.declared)
    }
}
