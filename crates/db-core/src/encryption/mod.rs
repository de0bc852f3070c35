//! Encryption of column values.
//!
//! A value is sealed under a key and for a [`Context`]: the table, column, row and, optionally, tenant where the value is
//! stored. The sealed value authenticates the context and does not contain it, so a sealed value that is moved to another row
//! or column does not unseal there.
//!
//! ```
//! use db_core::encryption::{Context, Key, Keyring, Sealed};
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
//! # The sealed form
//!
//! A sealed value is a `bytea`. Its overhead is 34 bytes.
//!
//! ```text
//! +---------+-----------+--------+-------+------------+-----+
//! | version | algorithm | key id | nonce | ciphertext | tag |
//! |    1    |     1     |   4    |  12   |     n      | 16  |
//! +---------+-----------+--------+-------+------------+-----+
//!  version    1
//!  algorithm  1 = AES-128-GCM, 2 = AES-256-GCM
//!  key id     the first 4 bytes of SHA-256("db-core key id" ‖ key)
//!  nonce      random
//! ```
//!
//! Authenticated beside the ciphertext: version, algorithm and key id as they stand, then table, column and row, each
//! as a 4-byte big-endian length and its UTF-8 bytes, then one byte 0, or one byte 1 and the tenant in the same form.
//!
//! # Limits
//!
//! Nonces are random, so NIST SP 800-38D (section 8.3) allows 2^32 values under one key. A sealed value reveals its length.
//! Keys are used as given: make them with [`Key::generate`], not from a password.

mod context;
mod key;
mod keyring;
mod sealed;

pub use context::Context;
pub use key::Key;
pub use keyring::{Keyring, Strategy};
pub use sealed::Sealed;

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
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes: {0}")]
    Random(String),
    /// The stored bytes are not a sealed value of a known form.
    #[error("{place}: this is not a sealed value: {what}")]
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
        /// The key's id, hexadecimal.
        key_id: String,
    },
    /// The key is in the keyring, but the value was altered or belongs to another context.
    #[error("{place}: the sealed value was altered, or sealed for another place")]
    NotAuthentic {
        /// Where it is stored.
        place: String,
    },
    /// The value cannot be written as JSON, or the JSON does not match the type.
    #[error("{place}: the value and its type do not agree")]
    Json {
        /// Where it is stored.
        place: String,
    },
    /// The value is longer than AES-GCM's limit (64 GiB).
    #[error("{place}: the value is too long to seal")]
    TooLong {
        /// Where it is to be stored.
        place: String,
    },
}
