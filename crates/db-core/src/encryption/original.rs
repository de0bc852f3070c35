//! Values in the form of Concourse, which are read and never written.

use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{Aead, KeyInit};
use aes_gcm::aes::Aes192;
use aes_gcm::{Aes128Gcm, Aes256Gcm, AesGcm};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Reads values in the form of Concourse: a column with AES-GCM's ciphertext and tag as hexadecimal text, and beside it a column with
/// the nonce. Where the nonce is null, the value is plain.
///
/// The form names no key, so each key is tried, and it binds a value to no row. It is for moving values into sealed columns.
///
/// ```
/// use db_core::encryption::Original;
///
/// let original = Original::default().with_key(b"AES128Key-16Char")?;
/// let value = "a246132577346560566bd062bea4bf1677e2a1c58ad64cec0a2ee573acb92e27";
///
/// let plain = original.read(value, Some("a0a1a2a3a4a5a6a7a8a9aaab"))?;
///
/// assert_eq!(plain.as_slice(), b"exampleplaintext");
/// assert_eq!(original.read("{}", None)?.as_slice(), b"{}");
/// # Ok::<(), db_core::encryption::OriginalError>(())
/// ```
#[derive(Default)]
pub struct Original {
    keys: Vec<Cipher>,
}

enum Cipher {
    Aes128(Box<Aes128Gcm>),
    Aes192(Box<AesGcm<Aes192, U12>>),
    Aes256(Box<Aes256Gcm>),
}

/// Why a value in the form of Concourse was not read. No variant contains a key or a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OriginalError {
    /// The key's length is not one of AES.
    #[error("a key of the original form must have 16, 24 or 32 bytes, this one has {0}")]
    KeyLength(usize),
    /// The key is not hexadecimal, or not base64.
    #[error("a key of the original form is not valid {0}")]
    KeyEncoding(&'static str),
    /// The value or its nonce is not hexadecimal, or too short.
    #[error("the {0} is not that of an encrypted value: it has to be hexadecimal text of the right length")]
    Malformed(&'static str),
    /// The value is encrypted, and there is no key.
    #[error("the value is encrypted, and no key of the original form was given")]
    NoKey,
    /// No key decrypts the value.
    #[error("none of the given keys decrypts the value")]
    NotAuthentic,
}

impl Original {
    /// Adds a key, of 16, 24 or 32 bytes: the current and the old one.
    ///
    /// # Errors
    ///
    /// [`OriginalError::KeyLength`].
    pub fn with_key(mut self, key: &[u8]) -> Result<Self, OriginalError> {
        let wrong = |_| OriginalError::KeyLength(key.len());
        self.keys.push(match key.len() {
            16 => Cipher::Aes128(Box::new(Aes128Gcm::new_from_slice(key).map_err(wrong)?)),
            24 => Cipher::Aes192(Box::new(AesGcm::new_from_slice(key).map_err(wrong)?)),
            32 => Cipher::Aes256(Box::new(Aes256Gcm::new_from_slice(key).map_err(wrong)?)),
            other => return Err(OriginalError::KeyLength(other)),
        });
        Ok(self)
    }

    /// As [`with_key`](Self::with_key), of hexadecimal digits.
    ///
    /// # Errors
    ///
    /// [`OriginalError::KeyEncoding`] and [`OriginalError::KeyLength`].
    pub fn with_hex_key(self, key: &str) -> Result<Self, OriginalError> {
        let key =
            const_hex::decode(key.trim()).map_err(|_| OriginalError::KeyEncoding("hexadecimal text"))?;
        self.with_key(&Zeroizing::new(key))
    }

    /// As [`with_key`](Self::with_key), of base64 with the standard alphabet and padding.
    ///
    /// # Errors
    ///
    /// [`OriginalError::KeyEncoding`] and [`OriginalError::KeyLength`].
    pub fn with_base64_key(self, key: &str) -> Result<Self, OriginalError> {
        let key = STANDARD.decode(key.trim()).map_err(|_| OriginalError::KeyEncoding("base64"))?;
        self.with_key(&Zeroizing::new(key))
    }

    /// Reads a value with its nonce.
    ///
    /// # Errors
    ///
    /// [`OriginalError::Malformed`], [`OriginalError::NoKey`] and [`OriginalError::NotAuthentic`].
    pub fn read(&self, value: &str, nonce: Option<&str>) -> Result<Zeroizing<Vec<u8>>, OriginalError> {
        let Some(nonce) = nonce else { return Ok(Zeroizing::new(value.as_bytes().to_vec())) };
        let nonce: [u8; 12] =
            const_hex::decode_to_array(nonce).map_err(|_| OriginalError::Malformed("nonce"))?;
        let sealed = const_hex::decode(value).map_err(|_| OriginalError::Malformed("value"))?;
        if self.keys.is_empty() {
            return Err(OriginalError::NoKey);
        }
        let plain = self.keys.iter().find_map(|cipher| cipher.open(nonce, &sealed));
        plain.map(Zeroizing::new).ok_or(OriginalError::NotAuthentic)
    }
}

impl Cipher {
    fn open(&self, nonce: [u8; 12], sealed: &[u8]) -> Option<Vec<u8>> {
        let nonce = &nonce.into();
        match self {
            Self::Aes128(cipher) => cipher.decrypt(nonce, sealed).ok(),
            Self::Aes192(cipher) => cipher.decrypt(nonce, sealed).ok(),
            Self::Aes256(cipher) => cipher.decrypt(nonce, sealed).ok(),
        }
    }
}

impl std::fmt::Debug for Original {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Original({} keys)", self.keys.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &str = "1d8cde080401e1452665783c5e636119c487bc52f5d1730b05df04365e1ca700";
    const NONCE: &str = "000102030405060708090a0b";

    fn original() -> Original {
        let other = Original::default().with_key(b"AES256Key-32Characters0987654321").expect("32 bytes");
        other.with_key(b"AES256Key-32Characters1234567890").expect("32 bytes")
    }

    #[test]
    fn any_of_the_keys_reads_a_value_in_either_case_of_its_digits() {
        for value in [VALUE.to_owned(), VALUE.to_uppercase()] {
            let plain = original().read(&value, Some(&NONCE.to_uppercase())).expect("read");
            assert_eq!(plain.as_slice(), b"exampleplaintext");
        }
        // Made by Python: `AESGCM(b"k" * 24).encrypt(bytes(12), b"plan", None)`.
        let of_24 = Original::default().with_hex_key(&"6b".repeat(24)).expect("24 bytes");
        let plain = of_24.read("07a84b28e01a7178735d5416683d0ddd0bb46b2c", Some(&"00".repeat(12)));
        assert_eq!(plain.expect("read").as_slice(), b"plan");
    }

    #[test]
    fn what_is_not_of_the_form_or_of_no_key_is_an_error() {
        use OriginalError::{KeyEncoding, KeyLength, Malformed, NoKey, NotAuthentic};

        for (value, nonce, error) in [
            (VALUE, "00", Malformed("nonce")),
            ("zz", NONCE, Malformed("value")),
            (&VALUE[2..], NONCE, NotAuthentic),
            ("", NONCE, NotAuthentic),
        ] {
            assert_eq!(original().read(value, Some(nonce)), Err(error));
        }
        assert_eq!(Original::default().read(VALUE, Some(NONCE)), Err(NoKey));
        assert_eq!(Original::default().with_key(b"short").err(), Some(KeyLength(5)));
        assert_eq!(Original::default().with_hex_key("x").err(), Some(KeyEncoding("hexadecimal text")));
        assert_eq!(Original::default().with_base64_key("x").err(), Some(KeyEncoding("base64")));
    }
}
