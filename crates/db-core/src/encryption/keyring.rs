//! The keys in use, and how they seal and unseal.

use std::fmt;

use aes_gcm::aead::{Aead, KeyInit, Nonce, Payload};
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::key::random;
use super::{Context, EncryptionError, Key, Sealed};

const VERSION: u8 = 1;
const HEADER: usize = 6;
const NONCE: usize = 12;
const TAG: usize = 16;

/// A way to seal bytes for a context and to unseal them in the same context.
pub trait Strategy: fmt::Debug + Send + Sync {
    /// Seals `plain` for `place`. Sealing the same value twice gives different bytes.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::Random`] or [`EncryptionError::TooLong`].
    fn seal(&self, plain: &[u8], place: &Context) -> Result<Vec<u8>, EncryptionError>;

    /// Unseals what was sealed for `place`.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::Malformed`], [`EncryptionError::UnknownKey`] or [`EncryptionError::NotAuthentic`], each
    /// naming the place.
    fn unseal(&self, sealed: &[u8], place: &Context) -> Result<Vec<u8>, EncryptionError>;
}

/// One primary key, which seals, and retired keys, which only unseal. AES-GCM; the sealed form is drawn in the
/// [module's documentation](super).
pub struct Keyring {
    primary: Entry,
    retired: Vec<Entry>,
}

struct Entry {
    id: [u8; 4],
    cipher: Cipher,
}

enum Cipher {
    Aes128(Box<Aes128Gcm>),
    Aes256(Box<Aes256Gcm>),
}

impl Keyring {
    /// A keyring with a primary key and no retired key.
    #[must_use]
    pub fn new(primary: &Key) -> Self {
        Self { primary: Entry::new(primary), retired: Vec::new() }
    }

    /// Adds a former primary key.
    #[must_use]
    pub fn with_retired(mut self, key: &Key) -> Self {
        self.retired.push(Entry::new(key));
        self
    }

    /// Seals a value as JSON.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::Json`] when the value does not become JSON; else as [`Strategy::seal`].
    pub fn seal_json<T: Serialize>(&self, value: &T, place: &Context) -> Result<Sealed<T>, EncryptionError> {
        let plain =
            serde_json::to_vec(value).map_err(|_| EncryptionError::Json { place: place.to_string() })?;
        self.seal(&plain, place).map(Sealed::from_bytes)
    }

    /// Unseals a value that was sealed by [`Keyring::seal_json`] for the same place.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::Json`] when the JSON is not a `T`; else as [`Strategy::unseal`].
    pub fn unseal_json<T: DeserializeOwned>(
        &self,
        sealed: &Sealed<T>,
        place: &Context,
    ) -> Result<T, EncryptionError> {
        let plain = self.unseal(sealed.as_bytes(), place)?;
        serde_json::from_slice(&plain).map_err(|_| EncryptionError::Json { place: place.to_string() })
    }

    fn find(&self, id: &[u8]) -> impl Iterator<Item = &Entry> {
        std::iter::once(&self.primary).chain(&self.retired).filter(move |entry| entry.id == id)
    }
}

impl Strategy for Keyring {
    fn seal(&self, plain: &[u8], place: &Context) -> Result<Vec<u8>, EncryptionError> {
        let mut nonce = [0; NONCE];
        random(&mut nonce)?;

        let mut sealed = Vec::with_capacity(HEADER + NONCE + plain.len() + TAG);
        sealed.extend_from_slice(&[VERSION, self.primary.cipher.algorithm()]);
        sealed.extend_from_slice(&self.primary.id);
        let authenticated = authenticated(&sealed, place);
        sealed.extend_from_slice(&nonce);
        let ciphertext = self
            .primary
            .cipher
            .encrypt(nonce, Payload { msg: plain, aad: &authenticated })
            .map_err(|_| EncryptionError::TooLong { place: place.to_string() })?;
        sealed.extend_from_slice(&ciphertext);
        Ok(sealed)
    }

    fn unseal(&self, sealed: &[u8], place: &Context) -> Result<Vec<u8>, EncryptionError> {
        let malformed = |what| EncryptionError::Malformed { place: place.to_string(), what };
        let Some((header, rest)) = sealed.split_first_chunk::<HEADER>() else {
            return Err(malformed("it is too short"));
        };
        let Some((nonce, ciphertext)) = rest.split_first_chunk::<NONCE>() else {
            return Err(malformed("it is too short"));
        };
        if header[0] != VERSION {
            return Err(malformed("its version is not known here"));
        }

        let authenticated = authenticated(header, place);
        let mut is_known = false;
        // Two keys may share a four-byte id; the authentication tag decides.
        for entry in self.find(&header[2..]) {
            if entry.cipher.algorithm() != header[1] {
                continue;
            }
            is_known = true;
            if let Ok(plain) = entry.cipher.decrypt(*nonce, Payload { msg: ciphertext, aad: &authenticated })
            {
                return Ok(plain);
            }
        }
        let place = place.to_string();
        Err(if is_known {
            EncryptionError::NotAuthentic { place }
        } else {
            EncryptionError::UnknownKey { place, key_id: const_hex::encode(&header[2..]) }
        })
    }
}

fn authenticated(header: &[u8], place: &Context) -> Vec<u8> {
    let mut bytes = header.to_vec();
    place.encode(&mut bytes);
    bytes
}

impl Entry {
    fn new(key: &Key) -> Self {
        let bytes = key.expose();
        let cipher = match bytes.len() {
            16 => Cipher::Aes128(Box::new(Aes128Gcm::new_from_slice(bytes).expect("16 bytes"))),
            _ => Cipher::Aes256(Box::new(Aes256Gcm::new_from_slice(bytes).expect("a key of 16 or 32 bytes"))),
        };
        Self { id: key.id(), cipher }
    }
}

impl Cipher {
    fn algorithm(&self) -> u8 {
        match self {
            Self::Aes128(_) => 1,
            Self::Aes256(_) => 2,
        }
    }

    fn encrypt(&self, nonce: [u8; NONCE], payload: Payload<'_, '_>) -> Result<Vec<u8>, aes_gcm::Error> {
        match self {
            Self::Aes128(cipher) => cipher.encrypt(&Nonce::<Aes128Gcm>::from(nonce), payload),
            Self::Aes256(cipher) => cipher.encrypt(&Nonce::<Aes256Gcm>::from(nonce), payload),
        }
    }

    fn decrypt(&self, nonce: [u8; NONCE], payload: Payload<'_, '_>) -> Result<Vec<u8>, aes_gcm::Error> {
        match self {
            Self::Aes128(cipher) => cipher.decrypt(&Nonce::<Aes128Gcm>::from(nonce), payload),
            Self::Aes256(cipher) => cipher.decrypt(&Nonce::<Aes256Gcm>::from(nonce), payload),
        }
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = |entry: &Entry| const_hex::encode(entry.id);
        f.debug_struct("Keyring")
            .field("primary", &id(&self.primary))
            .field("retired", &self.retired.iter().map(id).collect::<Vec<_>>())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn key(first: u8, length: u8) -> Key {
        Key::from_bytes((first..first + length).collect()).expect("a good length")
    }

    fn place() -> Context {
        Context::new("builds", "plan", 7)
    }

    #[test]
    fn a_value_sealed_under_a_retired_key_unseals() {
        let sealed = Keyring::new(&key(1, 32)).seal(b"plan", &place()).expect("sealed");

        let rotated = Keyring::new(&key(2, 16)).with_retired(&key(1, 32));

        assert_eq!(rotated.unseal(&sealed, &place()).expect("unsealed"), b"plan");
    }

    #[test]
    fn the_sealed_form_matches_its_documentation() {
        let sealed = Keyring::new(&key(1, 32)).seal(b"plan", &place()).expect("sealed");

        assert_eq!(sealed.len(), 34 + 4);
        assert_eq!(sealed[..2], [1, 2]);
        assert_eq!(sealed[2..6], key(1, 32).id());
    }

    /// A repeated nonce under one key reveals both values and the authentication key.
    #[test]
    fn no_two_seals_have_the_same_nonce() {
        for (first, length) in [(1, 16), (1, 32)] {
            let keyring = Keyring::new(&key(first, length));
            let seal = || keyring.seal(b"plan", &place()).expect("sealed");
            assert_ne!(seal(), seal(), "the same value in the same place");

            let sealed: Vec<_> = (0..1000).map(|_| seal()).collect();
            let nonces: HashSet<_> = sealed.iter().map(|sealed| &sealed[HEADER..HEADER + NONCE]).collect();
            assert_eq!(nonces.len(), sealed.len());
            // A part of the nonce must not be constant, for example a counter that restarts with the process.
            for byte in 0..NONCE {
                let values: HashSet<_> = nonces.iter().map(|nonce| nonce[byte]).collect();
                assert!(values.len() > 200, "byte {byte} of the nonce had {} values", values.len());
            }
        }
    }

    #[test]
    fn a_value_sealed_by_another_program_in_the_documented_form_unseals() {
        // Made by Python's `cryptography` from the documented form: key 00..0f, nonce a0..ab, plain text "plan".
        let sealed = const_hex::decode(GOLDEN).expect("hex");

        let plain = Keyring::new(&key(0, 16)).unseal(&sealed, &place()).expect("unsealed");

        assert_eq!(plain, b"plan");
    }

    const GOLDEN: &str = "0101b6b550fda0a1a2a3a4a5a6a7a8a9aaabdaea59d5dd8061b9644ee6c07df573d0f4e4517d";

    #[test]
    fn neither_another_place_nor_a_changed_byte_unseals() {
        let keyring = Keyring::new(&key(1, 32));
        let sealed = keyring.seal(b"plan", &place()).expect("sealed");

        for elsewhere in [
            Context::new("builds", "plan", 8),
            Context::new("builds", "env", 7),
            Context::new("jobs", "plan", 7),
            place().tenant("t"),
        ] {
            let error = keyring.unseal(&sealed, &elsewhere).expect_err("another place");
            assert!(matches!(error, EncryptionError::NotAuthentic { .. }), "{error}");
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(keyring.unseal(&changed, &place()).is_err(), "byte {at}");
        }
        for length in 0..sealed.len() {
            assert!(keyring.unseal(&sealed[..length], &place()).is_err(), "cut to {length}");
        }
    }

    #[test]
    fn an_unknown_key_is_named_by_its_id() {
        let sealed = Keyring::new(&key(1, 32)).seal(b"plan", &place()).expect("sealed");

        let error = Keyring::new(&key(2, 32)).unseal(&sealed, &place()).expect_err("another key");

        let id = const_hex::encode(key(1, 32).id());
        assert_eq!(
            error.to_string(),
            format!("builds.plan of row 7: sealed under key {id}, which is not in the keyring")
        );
    }
}
