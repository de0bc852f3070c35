//! Encryption of column values.
//!
//! A value is sealed under a key and for a [`Context`]: the table, column, row and, optionally, tenant where the value is
//! stored. The sealed value authenticates the context and does not contain it, so a sealed value that is moved to another row
//! or column does not unseal there.
//!
//! ```
//! use db_core::encryption::{Context, Key, Keyring, Sealed, Strategy};
//!
//! let keyring = Keyring::new(&Key::generate()?);
//! let place = Context::new("customers", "iban", 17);
//!
//! let sealed: Sealed<String> = keyring.seal_json(&"DE02 1203 0000 0000 2020 51".to_owned(), &place)?;
//! assert_eq!(keyring.unseal_json(&sealed, &place)?, "DE02 1203 0000 0000 2020 51");
//!
//! let elsewhere = Context::new("customers", "iban", 18);
//! assert!(keyring.unseal_json(&sealed, &elsewhere).is_err());
//! # Ok::<(), db_core::encryption::EncryptionError>(())
//! ```
//!
//! # Columns
//!
//! [`Columns`] declares the sealed columns of a program, so that a column's values are bound to it without naming it each time,
//! checks them against the database, and makes blind indexes, by which rows are found.
//!
//! # The sealed form
//!
//! A sealed value is a `bytea`, 47 bytes longer than the plain value:
//!
//! ```text
//! +---------+-----------+---------+--------+-------+------------+-----+
//! | version | algorithm | framing | key id | nonce | ciphertext | tag |
//! |    1    |     1     |    1    |   4    |  24   |     n      | 16  |
//! +---------+-----------+---------+--------+-------+------------+-----+
//!  version    2
//!  algorithm  3 = XAES-256-GCM (C2SP), under HKDF-SHA256(key, no salt, "db-core seal")
//!  framing    0 = the value as it is, 1 = padded by ISO/IEC 7816-4 before it was sealed
//!  key id     the first 4 bytes of SHA-256("db-core key id" ‖ key)
//!  nonce      random
//! ```
//!
//! Authenticated beside the ciphertext: the header as it stands (version to key id), then table, column and row, each as a
//! 4-byte big-endian length and its UTF-8 bytes, then one byte 0, or one byte 1 and the tenant in the same form.
//!
//! Values of the first form are unsealed, and no longer written. They are 34 bytes longer than the plain value, and have no
//! framing: version 1, algorithm 1 = AES-128-GCM or 2 = AES-256-GCM under the key itself, key id, a nonce of 12 bytes.
//!
//! A value whose first byte is 1 to 7 counts as sealed, any other as not sealed. Version, algorithm or framing that this
//! program does not know are the error [`Newer`](EncryptionError::Newer).
//!
//! # Limits
//!
//! A value may have 64 MiB. XAES has nonces of 192 bits, so the number of values under one key needs no limit: two equal nonces
//! are as unlikely among 2^80 values as among 2^32 values with the nonces of AES-GCM. A sealed value reveals its length, unless
//! it is [padded](Context::padded).
//!
//! What unseals is zeroed in memory when it is dropped, and so are keys. Copies are not: those that `serde_json` and your types
//! make, and what lies in the buffers of the connection.
//!
//! An id names one key of a keyring, so a value belongs to one key. Without that, XAES-256-GCM would not commit to its key:
//! who chooses two keys of one id can make a value that both unseal. Take no keys from your tenants.

mod cipher;
mod columns;
mod context;
mod form;
mod key;
mod key_id;
mod keyring;
mod keys;
mod original;
#[cfg(feature = "sea-orm")]
mod orm;
mod padding;
mod record;
mod sealed;
mod source;
mod strategy;
#[cfg(test)]
mod vectors;

pub use columns::{
    BlindIndex, Column, Columns, ColumnsError, Declare, DeclareIndex, Declared, KeyType, Normalization,
    RowKey,
};
pub use context::Context;
/// Unseals the sealed fields of a row in one call.
///
/// For a struct of a row, with fields of the types `Sealed<T>` and `Option<Sealed<T>>`, it writes two structs and a method:
///
/// - `…Columns`, with the [`Column`] of each sealed field;
/// - `…Plain`, the row with plain values;
/// - `unseal(self, &…Columns) -> Result<…Plain, EncryptionError>`.
///
/// ```
/// use std::sync::Arc;
/// use db_core::encryption::{Columns, Key, KeyType, Keyring, Sealed};
///
/// #[derive(Sealed)]
/// #[sealed(key = "id", plain = "Customer", derive(Debug))]
/// struct CustomerRow {
///     id: i64,
///     name: String,
///     iban: Sealed<String>,
///     note: Option<Sealed<String>>,
/// }
///
/// let columns = Columns::default();
/// let declare = |column| columns.declare::<String>("customers", column).key("id", KeyType::BigInt);
/// let customers = CustomerRowColumns { iban: declare("iban").text(), note: declare("note").text() };
/// columns.unlock(Arc::new(Keyring::new(&Key::generate()?)))?;
///
/// let iban = customers.iban.seal(17, &"DE02".to_owned())?;
/// let row = CustomerRow { id: 17, name: "Ada".to_owned(), iban, note: None };
/// let customer: Customer = row.unseal(&customers)?;
///
/// assert_eq!((customer.id, customer.name.as_str(), customer.iban.as_str()), (17, "Ada", "DE02"));
/// # let _ = customer.note;
/// # Ok::<(), db_core::encryption::EncryptionError>(())
/// ```
///
/// | argument of `sealed` | what it says |
/// |---|---|
/// | `key = "id"` | the field of the row's key; `"tenant, nr"` for several, in the order of the declaration |
/// | `plain = "Customer"` | the name of the struct of plain values, else the row's and `Plain` |
/// | `derive(Debug, Serialize)` | what that struct derives: nothing, unless it is said |
/// | `crate = "db_layer"` | the crate to take `encryption` from, else `db_core` |
///
/// ```compile_fail
/// use db_core::encryption::Sealed;
///
/// #[derive(Sealed)]
/// #[sealed(key = "nr")]
/// struct NoSuchKey {
///     id: i64,
///     iban: Sealed<String>,
/// }
/// ```
pub use db_core_macros::Sealed;
pub use key::Key;
pub use key_id::KeyId;
pub use keyring::Keyring;
pub use keys::{KeyTotals, Keys};
pub use original::{Original, OriginalError};
pub use record::{
    HolderStatusRow, KeyHolder, KeyRecord, KeyRecordError, KeyState, KeyStatus, KeyStatusRow, MissingKeys,
    Promotion, RecordedKey, RootKey, SCHEMA, Standing,
};
pub use sealed::Sealed;
pub use source::{KeyReader, KeySource, KeySourceError, KeySources};
pub use strategy::{Fallback, NoEncryption, Strategy};
pub use zeroize::Zeroizing;

/// Errors of sealing and unsealing. No variant contains a key or a value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncryptionError {
    /// The key's length is not 16 or 32 bytes.
    #[error("an encryption key must have 16 or 32 bytes, this one has {0}")]
    KeyLength(usize),
    /// The key is not hexadecimal, or not base64.
    #[error("an encryption key is not valid {0}")]
    KeyEncoding(&'static str),
    /// All bytes of the key are equal, as those of an empty file are.
    #[error("all bytes of an encryption key are equal: make keys of random bytes")]
    KeyUniform,
    /// A key's id is not eight hexadecimal digits.
    #[error("the id of an encryption key is eight hexadecimal digits")]
    KeyId,
    /// Two different keys have one id, so a value would not say which of them it needs.
    #[error("two different encryption keys have the id {0}: make another key")]
    SameId(KeyId),
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes: {0}")]
    Random(String),
    /// The stored bytes are not sealed, and the strategy unseals only what is.
    #[error("{place}: this is not a sealed value")]
    NotSealed {
        /// Where it is stored.
        place: String,
    },
    /// The bytes are sealed, or begin as a sealed value does, and the strategy has no key.
    #[error("{place}: this is a sealed value, and there is no encryption key")]
    IsSealed {
        /// Where it is stored, or is to be stored.
        place: String,
    },
    /// A newer version of this library sealed the value.
    #[error("{place}: sealed in a form that is newer than this program: {part} {number}")]
    Newer {
        /// Where it is stored.
        place: String,
        /// `version`, `algorithm` or `framing`.
        part: &'static str,
        /// The value's number for it.
        number: u8,
    },
    /// The stored bytes begin as a sealed value and are not a whole one.
    #[error("{place}: this is not a whole sealed value: {what}")]
    Malformed {
        /// Where it is stored.
        place: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The value was sealed under a key that is not in the keyring.
    #[error("{place}: sealed under key {key_id}, which is not in the keyring")]
    UnknownKey {
        /// Where it is stored.
        place: String,
        /// The key's id.
        key_id: KeyId,
    },
    /// The key is in the keyring, but the value was altered or belongs to another context.
    #[error(
        "{place}: the value sealed under key {key_id} was altered, or sealed for another row or column. If an `on conflict do \
         update` wrote it, seal values for the columns of its `on conflict`"
    )]
    NotAuthentic {
        /// Where it is stored.
        place: String,
        /// The id of the key that the value names.
        key_id: KeyId,
    },
    /// Neither strategy of a [`Fallback`] unseals the value.
    #[error("{first}; and by the fallback: {second}")]
    Neither {
        /// The error of the first strategy.
        first: Box<EncryptionError>,
        /// The error of the second one.
        second: Box<EncryptionError>,
    },
    /// The value cannot be written in its form, such as JSON, or what is stored in that form is not of the type.
    #[error("{place}: the value and its type do not agree")]
    Type {
        /// Where it is stored.
        place: String,
    },
    /// The columns have no keys yet.
    #[error("{place}: the columns have no keys yet: `db_layer::open` and `Columns::unlock` give them")]
    Locked {
        /// Where the value is stored, or is to be stored.
        place: String,
    },
    /// The program has no key at hand to seal or to unseal with.
    #[error("{place}: the encryption keys are away: {why}")]
    KeysAway {
        /// Where the value is stored, or is to be stored.
        place: String,
        /// Why they are away.
        why: String,
    },
    /// The columns have keys already.
    #[error("the columns have keys already")]
    Unlocked,
    /// The row's key has another number of columns than the declaration.
    #[error("{column}: the key of a row has {declared} columns, and {given} were given")]
    RowKey {
        /// The column.
        column: String,
        /// The number of given columns.
        given: usize,
        /// The number of declared columns.
        declared: usize,
    },
    /// The strategy has no key for a blind index.
    #[error("{column}: the key of its blind index is not there")]
    NoIndexKey {
        /// The column whose values the index finds.
        column: String,
    },
    /// The value is longer than 64 MiB.
    #[error("{place}: the value has {length} bytes, and the limit is {limit}")]
    TooLong {
        /// Where it is to be stored.
        place: String,
        /// Its length in bytes, with the padding.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
}
