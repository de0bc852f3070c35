//! The name of a key in sealed values.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::EncryptionError;
use super::form::Parts;

/// The id that each value sealed under a key contains: the first four bytes of a hash of the key, written as eight hexadecimal
/// digits. It reveals nothing about the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub(super) [u8; KeyId::LENGTH]);

impl KeyId {
    pub(super) const LENGTH: usize = 4;

    /// The id of these bytes, if they are four.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The id of the key that a sealed value names, without unsealing it. `None` when the bytes are not a sealed value of a known form.
    #[must_use]
    pub fn of_sealed(bytes: &[u8]) -> Option<Self> {
        Parts::read(bytes).ok().map(|parts| parts.key_id)
    }

    /// The id's bytes, as they are in a sealed value.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(const_hex::Buffer::<{ KeyId::LENGTH }>::new().format(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for KeyId {
    type Err = EncryptionError;

    /// Reads eight hexadecimal digits.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::KeyId`].
    fn from_str(text: &str) -> Result<Self, EncryptionError> {
        const_hex::decode_to_array(text).map(Self).map_err(|_| EncryptionError::KeyId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let id: KeyId = "a94b7b2c".parse().expect("an id");

        assert_eq!((id.as_bytes(), id.to_string()), (&[0xa9, 0x4b, 0x7b, 0x2c][..], "a94b7b2c".to_owned()));
        for text in ["", "a94b7b", "a94b7b2c00", "a94b7b2g", "the key"] {
            assert!(matches!(text.parse::<KeyId>(), Err(EncryptionError::KeyId)), "{text}");
        }
    }
}
