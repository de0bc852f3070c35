//! Ways to seal and to unseal.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::form::{Parts, Unreadable};
use super::{Context, EncryptionError, KeyId, Sealed};

/// A way to seal bytes for a context and to unseal them in the same context.
///
/// [`Keyring`](super::Keyring) is the usual one. Implement the trait for another cipher, or for keys that never leave their device.
pub trait Strategy: fmt::Debug + Send + Sync {
    /// Seals `plain` for `place`.
    ///
    /// # Errors
    ///
    /// Those of the strategy, each naming the place.
    fn seal(&self, plain: &[u8], place: &Context) -> Result<Vec<u8>, EncryptionError>;

    /// Unseals what was sealed for `place`. The result is zeroed when it is dropped.
    ///
    /// # Errors
    ///
    /// Those of the strategy, each naming the place.
    fn unseal(&self, sealed: &[u8], place: &Context) -> Result<Zeroizing<Vec<u8>>, EncryptionError>;

    /// The key that seals new values now. None for a strategy without keys, or whose sealed form has no ids of keys.
    fn sealing_key(&self) -> Option<KeyId> {
        None
    }

    /// Seals a value as JSON.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::Type`] when the value does not become JSON; else as [`seal`](Self::seal).
    fn seal_json<T: Serialize>(&self, value: &T, place: &Context) -> Result<Sealed<T>, EncryptionError>
    where
        Self: Sized,
    {
        let plain = serde_json::to_vec(value)
            .map(Zeroizing::new)
            .map_err(|_| EncryptionError::Type { place: place.to_string() })?;
        self.seal(&plain, place).map(Sealed::from_bytes)
    }

    /// Unseals a value that was sealed by [`seal_json`](Self::seal_json) for the same place.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::Type`] when the JSON is not a `T`; else as [`unseal`](Self::unseal).
    fn unseal_json<T: DeserializeOwned>(
        &self,
        sealed: &Sealed<T>,
        place: &Context,
    ) -> Result<T, EncryptionError>
    where
        Self: Sized,
    {
        let plain = self.unseal(sealed.as_bytes(), place)?;
        serde_json::from_slice(&plain).map_err(|_| EncryptionError::Type { place: place.to_string() })
    }

    /// Hashes `text` for a [blind index](super::BlindIndex), under each key, the one that seals first. A key for this purpose
    /// alone is derived by `label`, which is the concatenation of its parts. Without keys, there is none.
    fn blind(&self, label: &[&[u8]], text: &[u8]) -> Vec<(KeyId, [u8; 32])> {
        let _ = (label, text);
        Vec::new()
    }
}

impl<S: Strategy + ?Sized> Strategy for &S {
    fn seal(&self, plain: &[u8], place: &Context) -> Result<Vec<u8>, EncryptionError> {
        (**self).seal(plain, place)
    }

    fn unseal(&self, sealed: &[u8], place: &Context) -> Result<Zeroizing<Vec<u8>>, EncryptionError> {
        (**self).unseal(sealed, place)
    }

    fn sealing_key(&self) -> Option<KeyId> {
        (**self).sealing_key()
    }

    fn blind(&self, label: &[&[u8]], text: &[u8]) -> Vec<(KeyId, [u8; 32])> {
        (**self).blind(label, text)
    }
}

impl<S: Strategy + ?Sized> Strategy for Arc<S> {
    fn seal(&self, plain: &[u8], place: &Context) -> Result<Vec<u8>, EncryptionError> {
        (**self).seal(plain, place)
    }

    fn unseal(&self, sealed: &[u8], place: &Context) -> Result<Zeroizing<Vec<u8>>, EncryptionError> {
        (**self).unseal(sealed, place)
    }

    fn sealing_key(&self) -> Option<KeyId> {
        (**self).sealing_key()
    }

    fn blind(&self, label: &[&[u8]], text: &[u8]) -> Vec<(KeyId, [u8; 32])> {
        (**self).blind(label, text)
    }
}

/// No encryption: stores values as they are, for a service that has no key, and reads the plain values of a column while they are
/// being sealed.
///
/// ```
/// use db_core::encryption::{Context, EncryptionError, Fallback, Key, Keyring, NoEncryption, Strategy};
///
/// let place = Context::new("customers", "iban", 17);
/// // Sealed from now on; what is there already is still read.
/// let strategy = Fallback::new(Keyring::new(&Key::generate()?), NoEncryption);
///
/// let sealed = strategy.seal(b"DE02", &place)?;
///
/// assert_eq!(**strategy.unseal(b"DE02", &place)?, *b"DE02");
/// assert_eq!(**strategy.unseal(&sealed, &place)?, *b"DE02");
/// assert!(matches!(NoEncryption.unseal(&sealed, &place), Err(EncryptionError::IsSealed { .. })));
/// # Ok::<(), EncryptionError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEncryption;

impl Strategy for NoEncryption {
    /// Returns the value as it is.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::IsSealed`] if it begins with a byte of 1 to 7, since it would be taken for a sealed value.
    fn seal(&self, plain: &[u8], place: &Context) -> Result<Vec<u8>, EncryptionError> {
        as_it_is(plain, place).map(<[u8]>::to_vec)
    }

    /// Returns the value as it is.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::IsSealed`].
    fn unseal(&self, plain: &[u8], place: &Context) -> Result<Zeroizing<Vec<u8>>, EncryptionError> {
        as_it_is(plain, place).map(|plain| Zeroizing::new(plain.to_vec()))
    }
}

fn as_it_is<'a>(bytes: &'a [u8], place: &Context) -> Result<&'a [u8], EncryptionError> {
    match Parts::read(bytes) {
        Err(Unreadable::NotSealed) => Ok(bytes),
        _ => Err(EncryptionError::IsSealed { place: place.to_string() }),
    }
}

/// Seals by the first strategy, and unseals by the first one that can. For as long as values of both are stored.
///
/// With [`NoEncryption`] as the second one, who can write to the table can put a plain value in the place of a sealed one: end the
/// transition when all values are sealed.
#[derive(Clone, Copy, Debug)]
pub struct Fallback<A, B> {
    first: A,
    second: B,
}

impl<A: Strategy, B: Strategy> Fallback<A, B> {
    /// `first` seals and unseals, `second` unseals what `first` cannot.
    pub fn new(first: A, second: B) -> Self {
        Self { first, second }
    }
}

impl<A: Strategy, B: Strategy> Strategy for Fallback<A, B> {
    fn seal(&self, plain: &[u8], place: &Context) -> Result<Vec<u8>, EncryptionError> {
        self.first.seal(plain, place)
    }

    /// # Errors
    ///
    /// [`EncryptionError::Neither`], with the errors of both.
    fn unseal(&self, sealed: &[u8], place: &Context) -> Result<Zeroizing<Vec<u8>>, EncryptionError> {
        self.first.unseal(sealed, place).or_else(|first| {
            self.second.unseal(sealed, place).map_err(|second| EncryptionError::Neither {
                first: Box::new(first),
                second: Box::new(second),
            })
        })
    }

    fn sealing_key(&self) -> Option<KeyId> {
        self.first.sealing_key()
    }

    fn blind(&self, label: &[&[u8]], text: &[u8]) -> Vec<(KeyId, [u8; 32])> {
        [self.first.blind(label, text), self.second.blind(label, text)].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Key, Keyring};
    use super::*;

    fn place() -> Context {
        Context::new("builds", "plan", 7)
    }

    fn keyring(first: u8) -> Keyring {
        Keyring::new(&Key::from_bytes((first..first + 32).collect()).expect("32 bytes"))
    }

    #[test]
    fn without_encryption_values_stay_as_they_are() {
        for plain in [&b"plan"[..], b"", b"\0", b"\x08"] {
            assert_eq!(NoEncryption.seal(plain, &place()).expect("stored"), plain);
            assert_eq!(NoEncryption.unseal(plain, &place()).expect("read").as_slice(), plain);
        }
    }

    #[test]
    fn without_encryption_nothing_is_stored_that_looks_sealed_and_nothing_sealed_is_read() {
        let sealed = keyring(1).seal(b"plan", &place()).expect("sealed");
        for bytes in [sealed.as_slice(), &sealed[..20], b"\x01", b"\x07newer"] {
            for error in [
                NoEncryption.seal(bytes, &place()).expect_err("looks sealed"),
                NoEncryption.unseal(bytes, &place()).expect_err("looks sealed"),
            ] {
                assert_eq!(
                    error.to_string(),
                    "builds.plan of row 7: this is a sealed value, and there is no encryption key"
                );
            }
        }
    }

    #[test]
    fn a_fallback_unseals_what_either_can_and_else_has_both_errors() {
        let both = Fallback::new(Arc::new(keyring(1)), NoEncryption);
        let sealed = both.seal(b"plan", &place()).expect("sealed");

        assert_eq!(both.sealing_key(), keyring(1).sealing_key());
        assert_eq!(both.unseal(&sealed, &place()).expect("sealed").as_slice(), b"plan");
        assert_eq!(both.unseal(b"plan", &place()).expect("plain").as_slice(), b"plan");

        let unknown = keyring(2).seal(b"plan", &place()).expect("sealed");
        let error = both.unseal(&unknown, &place()).expect_err("of a third key");
        let EncryptionError::Neither { first, second } = error else { panic!("{error}") };
        assert!(matches!(*first, EncryptionError::UnknownKey { .. }), "{first}");
        assert!(matches!(*second, EncryptionError::IsSealed { .. }), "{second}");
    }
}
