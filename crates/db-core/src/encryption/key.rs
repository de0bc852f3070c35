//! Encryption keys.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretSlice};
use sha2::{Digest, Sha256};

use super::EncryptionError;

/// An AES key of 16 or 32 bytes. `Debug` shows its id only.
#[derive(Clone)]
pub struct Key {
    bytes: SecretSlice<u8>,
}

impl Key {
    /// A new random key of 32 bytes, from the operating system.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::Random`] when the system returns no random bytes.
    pub fn generate() -> Result<Self, EncryptionError> {
        let mut bytes = vec![0; 32];
        random(&mut bytes)?;
        Self::from_bytes(bytes)
    }

    /// A key from its bytes.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::KeyLength`] for any other length than 16 or 32.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, EncryptionError> {
        match bytes.len() {
            16 | 32 => Ok(Self { bytes: bytes.into() }),
            other => Err(EncryptionError::KeyLength(other)),
        }
    }

    /// A key from 32 or 64 hexadecimal digits.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::KeyEncoding`] or [`EncryptionError::KeyLength`].
    pub fn from_hex(text: &str) -> Result<Self, EncryptionError> {
        Self::from_bytes(
            const_hex::decode(text.trim()).map_err(|_| EncryptionError::KeyEncoding("hexadecimal"))?,
        )
    }

    /// A key from base64, with padding.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::KeyEncoding`] or [`EncryptionError::KeyLength`].
    pub fn from_base64(text: &str) -> Result<Self, EncryptionError> {
        Self::from_bytes(STANDARD.decode(text.trim()).map_err(|_| EncryptionError::KeyEncoding("base64"))?)
    }

    /// The key as hexadecimal digits, to store in a safe place.
    #[must_use]
    pub fn to_hex(&self) -> secrecy::SecretString {
        const_hex::encode(self.expose()).into()
    }

    /// The id that each value sealed under the key contains. It reveals nothing about the key.
    #[must_use]
    pub fn id(&self) -> [u8; 4] {
        let digest = Sha256::new().chain_update(b"db-core key id").chain_update(self.expose()).finalize();
        [digest[0], digest[1], digest[2], digest[3]]
    }

    pub(super) fn expose(&self) -> &[u8] {
        self.bytes.expose_secret()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", const_hex::encode(self.id()))
    }
}

pub(super) fn random(out: &mut [u8]) -> Result<(), EncryptionError> {
    getrandom::fill(out).map_err(|error| EncryptionError::Random(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_key_is_read_from_each_form() {
        let key = Key::from_bytes((0..16).collect()).expect("16 bytes");

        let hex = Key::from_hex("000102030405060708090a0b0c0d0e0f\n").expect("hex");
        let base64 = Key::from_base64("AAECAwQFBgcICQoLDA0ODw==").expect("base64");

        assert_eq!((hex.id(), base64.id()), (key.id(), key.id()));
    }

    #[test]
    fn other_lengths_and_alphabets_are_refused_and_nothing_is_shown() {
        assert!(matches!(Key::from_bytes(vec![1; 24]), Err(EncryptionError::KeyLength(24))));
        assert!(matches!(Key::from_hex("no hex"), Err(EncryptionError::KeyEncoding(_))));
        assert!(matches!(Key::from_base64("?"), Err(EncryptionError::KeyEncoding(_))));

        let key = Key::from_bytes(b"0123456789abcdef".to_vec()).expect("16 bytes");
        assert!(!format!("{key:?}").contains("30313233"), "{key:?}");
    }
}
