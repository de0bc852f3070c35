//! Encryption keys.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretSlice};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{EncryptionError, KeyId};

/// A key of 16 or 32 bytes. `Debug` shows its id only.
///
/// Values are sealed under what HKDF-SHA256 (RFC 5869) derives from the key for this one purpose. Only values of the first form
/// were sealed under the key itself.
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
    /// A key of printable ASCII characters alone is used, and a warning with its id is logged: somebody may have typed it, and it
    /// has less than seven random bits a byte.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::KeyLength`] for any other length than 16 or 32, and [`EncryptionError::KeyUniform`] when all bytes
    /// are equal.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, EncryptionError> {
        let bytes = Zeroizing::new(bytes);
        if !matches!(bytes.len(), 16 | 32) {
            return Err(EncryptionError::KeyLength(bytes.len()));
        }
        if bytes.iter().all(|&byte| byte == bytes[0]) {
            return Err(EncryptionError::KeyUniform);
        }
        let key = Self { bytes: bytes.to_vec().into() };
        if bytes.iter().all(|byte| matches!(byte, b' '..=b'~')) {
            tracing::warn!(
                key_id = %key.id(),
                "an encryption key has printable ASCII characters only: make keys of random bytes, such as those of `openssl rand -base64 32`"
            );
        }
        Ok(key)
    }

    /// A key from 32 or 64 hexadecimal digits.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::KeyEncoding`], and those of [`Key::from_bytes`].
    pub fn from_hex(text: &str) -> Result<Self, EncryptionError> {
        Self::from_bytes(
            const_hex::decode(text.trim()).map_err(|_| EncryptionError::KeyEncoding("hexadecimal"))?,
        )
    }

    /// A key from base64, with padding.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::KeyEncoding`], and those of [`Key::from_bytes`].
    pub fn from_base64(text: &str) -> Result<Self, EncryptionError> {
        Self::from_bytes(STANDARD.decode(text.trim()).map_err(|_| EncryptionError::KeyEncoding("base64"))?)
    }

    /// The key as hexadecimal digits, to store in a safe place.
    #[must_use]
    pub fn to_hex(&self) -> secrecy::SecretString {
        const_hex::encode(self.expose()).into()
    }

    /// The id that each value sealed under the key contains.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let digest = Sha256::new().chain_update(b"db-core key id").chain_update(self.expose()).finalize();
        KeyId([digest[0], digest[1], digest[2], digest[3]])
    }

    /// A key for the purpose that the concatenated `label` names, by HKDF-SHA256 without salt.
    pub(super) fn derive(&self, label: &[&[u8]]) -> Zeroizing<[u8; 32]> {
        let mut derived = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(None, self.expose())
            .expand_multi_info(label, &mut *derived)
            .expect("HKDF gives up to 8160 bytes");
        derived
    }

    /// HMAC-SHA256 of `text`, under the key for the purpose that `label` names.
    pub(super) fn mac(&self, label: &[&[u8]], text: &[u8]) -> [u8; 32] {
        hmac(&*self.derive(label), text)
    }

    /// Tells this key from others of the same id, and says nothing else about it.
    pub(super) fn check_value(&self) -> [u8; 16] {
        *self.derive(&[b"db-core key check"]).first_chunk().expect("32 bytes")
    }

    pub(super) fn expose(&self) -> &[u8] {
        self.bytes.expose_secret()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id())
    }
}

pub(super) fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.chain_update(text).finalize().into_bytes().into()
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
        for length in (0..70).filter(|length| ![16, 32].contains(length)) {
            let error = Key::from_bytes((0..length).collect()).expect_err("another length");
            assert!(
                matches!(error, EncryptionError::KeyLength(said) if said == usize::from(length)),
                "{error}"
            );
        }
        for (byte, length) in [(0, 16), (0, 32), (255, 32), (b'a', 16)] {
            assert!(matches!(Key::from_bytes(vec![byte; length]), Err(EncryptionError::KeyUniform)));
        }
        assert!(matches!(Key::from_hex("no hex"), Err(EncryptionError::KeyEncoding(_))));
        assert!(matches!(Key::from_base64("?"), Err(EncryptionError::KeyEncoding(_))));

        let key = Key::from_bytes(b"0123456789abcdef".to_vec()).expect("16 bytes");
        assert!(!format!("{key:?}").contains("30313233"), "{key:?}");
    }
}
