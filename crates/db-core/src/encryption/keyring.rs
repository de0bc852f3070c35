//! The keys in use.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::cipher::Ciphers;
use super::form::{Form, Parts};
use super::key::random;
use super::padding::{pad, padded, unpadded};
use super::{Context, EncryptionError, Key, KeyId, Strategy};

/// The longest value that is sealed, with its padding, in bytes.
const LONGEST: usize = 64 << 20;

/// One primary key, which seals, and retired keys, which only unseal. The sealed form is drawn in the
/// [module's documentation](super).
///
/// A sealed value names its key, and the keyring never tries another one.
///
/// Clones share the keys.
#[derive(Clone)]
pub struct Keyring {
    primary: Arc<Entry>,
    retired: Vec<Arc<Entry>>,
}

struct Entry {
    key: Key,
    id: KeyId,
    ciphers: Ciphers,
}

impl Keyring {
    /// A keyring with a primary key and no retired key.
    #[must_use]
    pub fn new(primary: &Key) -> Self {
        Self { primary: Arc::new(Entry::new(primary)), retired: Vec::new() }
    }

    /// Adds a former primary key. A key that is there already changes nothing.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::SameId`] when another key of the keyring has the same id. That happens by chance once in four billion
    /// pairs.
    pub fn with_retired(mut self, key: &Key) -> Result<Self, EncryptionError> {
        match self.find(key.id()) {
            None => self.retired.push(Arc::new(Entry::new(key))),
            Some(same) if bool::from(same.key.expose().ct_eq(key.expose())) => {}
            Some(_) => return Err(EncryptionError::SameId(key.id())),
        }
        Ok(self)
    }

    /// The same keys with another primary one. `None` if the key is not in the keyring.
    #[must_use]
    pub fn sealing_under(&self, id: KeyId) -> Option<Self> {
        let (mut first, rest): (Vec<_>, Vec<_>) = self.entries().cloned().partition(|entry| entry.id == id);
        Some(Self { primary: first.pop()?, retired: rest })
    }

    /// The keys, the primary one first.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.entries().map(|entry| &entry.key)
    }

    fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        std::iter::once(&self.primary).chain(&self.retired)
    }

    fn find(&self, id: KeyId) -> Option<&Entry> {
        self.entries().map(AsRef::as_ref).find(|entry| entry.id == id)
    }
}

impl Strategy for Keyring {
    /// Seals under the primary key. Sealing the same value twice gives different bytes.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::Random`] and [`EncryptionError::TooLong`].
    fn seal(&self, plain: &[u8], place: &Context) -> Result<Vec<u8>, EncryptionError> {
        let form = Form::Xaes { is_padded: place.padding() > 0 };
        let length = length(plain.len(), place)?;

        // Encrypted where it is, so that no copy of the plain value is left behind.
        let mut sealed = Vec::with_capacity(form.overhead() + length);
        sealed.extend_from_slice(form.prefix());
        sealed.extend_from_slice(self.primary.id.as_bytes());
        let authenticated = authenticated(&sealed, place);
        let nonce_at = sealed.len();
        sealed.resize(nonce_at + form.nonce(), 0);
        random(&mut sealed[nonce_at..])?;
        sealed.extend_from_slice(plain);
        if place.padding() > 0 {
            pad(&mut sealed, nonce_at + form.nonce() + length);
        }
        let (nonce, buffer) = sealed[nonce_at..].split_at_mut(form.nonce());
        let tag = self.primary.ciphers.seal(nonce, &authenticated, buffer);
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    /// Unseals under the key that the value names.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::NotSealed`], [`EncryptionError::Newer`], [`EncryptionError::Malformed`],
    /// [`EncryptionError::UnknownKey`] and [`EncryptionError::NotAuthentic`].
    fn unseal(&self, sealed: &[u8], place: &Context) -> Result<Zeroizing<Vec<u8>>, EncryptionError> {
        let parts = Parts::read(sealed).map_err(|unreadable| unreadable.at(place.to_string()))?;
        let entry = self
            .find(parts.key_id)
            .ok_or_else(|| EncryptionError::UnknownKey { place: place.to_string(), key_id: parts.key_id })?;

        let authenticated = authenticated(parts.header, place);
        let mut plain = Zeroizing::new(parts.ciphertext.to_vec());
        entry
            .ciphers
            .open(parts.form, parts.nonce, &authenticated, &mut plain, parts.tag)
            .map_err(|_| EncryptionError::NotAuthentic { place: place.to_string(), key_id: parts.key_id })?;
        if parts.form == (Form::Xaes { is_padded: true }) {
            let length = unpadded(&plain).ok_or_else(|| EncryptionError::Malformed {
                place: place.to_string(),
                what: "it has no padding, and says that it is padded",
            })?;
            plain.truncate(length);
        }
        Ok(plain)
    }

    fn sealing_key(&self) -> Option<KeyId> {
        Some(self.primary.id)
    }

    fn blind(&self, label: &[&[u8]], text: &[u8]) -> Vec<(KeyId, [u8; 32])> {
        self.entries().map(|entry| (entry.id, entry.key.mac(label, text))).collect()
    }
}

/// The length of what is encrypted: the plain value with its padding.
fn length(plain: usize, place: &Context) -> Result<usize, EncryptionError> {
    let length = match place.padding() {
        0 => plain,
        multiple => padded(plain, multiple),
    };
    if length > LONGEST {
        return Err(EncryptionError::TooLong { place: place.to_string(), length, limit: LONGEST });
    }
    Ok(length)
}

/// On the stack if it is short, as most are.
fn authenticated(header: &[u8], place: &Context) -> SmallVec<[u8; 128]> {
    let mut bytes = SmallVec::from_slice(header);
    bytes.extend_from_slice(place.encoded());
    bytes
}

impl Entry {
    fn new(key: &Key) -> Self {
        Self { key: key.clone(), id: key.id(), ciphers: Ciphers::new(key) }
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = |entry: &Arc<Entry>| entry.id.to_string();
        f.debug_struct("Keyring")
            .field("primary", &id(&self.primary))
            .field("retired", &self.retired.iter().map(id).collect::<Vec<_>>())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::any;
    use proptest::proptest;

    use super::*;

    fn key(first: u8, length: u8) -> Key {
        Key::from_bytes((first..first + length).collect()).expect("a good length")
    }

    fn place() -> Context {
        Context::new("builds", "plan", 7)
    }

    /// Unseals, as text.
    fn text(keyring: &Keyring, sealed: &[u8], place: &Context) -> String {
        String::from_utf8(keyring.unseal(sealed, place).expect("unsealed").to_vec()).expect("text")
    }

    #[test]
    fn a_value_sealed_under_a_retired_key_unseals() {
        for length in [16, 32] {
            let sealed = Keyring::new(&key(1, length)).seal(b"plan", &place()).expect("sealed");

            let rotated = Keyring::new(&key(2, 32)).with_retired(&key(1, length)).expect("another id");

            assert_eq!(text(&rotated, &sealed, &place()), "plan");
            let anew = rotated.seal(b"plan", &place()).expect("sealed");
            assert_eq!(anew[3..7], *key(2, 32).id().as_bytes(), "under the primary key");
            assert_eq!(rotated.sealing_key(), Some(key(2, 32).id()));
        }
    }

    #[test]
    fn the_sealed_form_matches_its_documentation() {
        let keyring = Keyring::new(&key(1, 32));
        let id = *key(1, 32).id().as_bytes().first_chunk::<4>().expect("four bytes");
        let sealed = keyring.seal(b"plan", &place()).expect("sealed");

        assert_eq!((sealed.len(), &sealed[..3], &sealed[3..7]), (47 + 4, &[2, 3, 0][..], &id[..]));

        let padded = keyring.seal(b"plan", &place().padded(32)).expect("sealed");

        assert_eq!((padded.len(), &padded[..3], &padded[3..7]), (47 + 32, &[2, 3, 1][..], &id[..]));
    }

    /// A repeated nonce under one key reveals both values and the authentication key.
    #[test]
    fn no_two_seals_have_the_same_nonce() {
        for length in [16, 32] {
            let keyring = Keyring::new(&key(1, length));
            let seal = || keyring.seal(b"plan", &place()).expect("sealed");
            assert_ne!(seal(), seal(), "the same value in the same place");

            let sealed: Vec<_> = (0..1000).map(|_| seal()).collect();
            let nonces: HashSet<_> = sealed.iter().map(|sealed| &sealed[7..31]).collect();
            assert_eq!(nonces.len(), sealed.len());
            // A part of the nonce must not be constant, for example a counter that restarts with the process.
            for byte in 0..24 {
                let values: HashSet<_> = nonces.iter().map(|nonce| nonce[byte]).collect();
                assert!(values.len() > 200, "byte {byte} of the nonce had {} values", values.len());
            }
        }
    }

    #[test]
    fn neither_another_place_nor_a_changed_byte_nor_a_cut_value_unseals() {
        let keyring = Keyring::new(&key(1, 32)).with_retired(&key(1, 16)).expect("another id");
        let mut all: Vec<Vec<u8>> = [place(), place().padded(8)]
            .iter()
            .map(|place| keyring.seal(b"plan", place).expect("sealed"))
            .collect();
        all.extend(super::super::vectors::first_form(&key(1, 16), &key(1, 32), b"plan", &place()));

        for sealed in all {
            assert_eq!(text(&keyring, &sealed, &place()), "plan");
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
                for bit in 0..8 {
                    let mut changed = sealed.clone();
                    changed[at] ^= 1 << bit;
                    assert!(keyring.unseal(&changed, &place()).is_err(), "bit {bit} of byte {at}");
                }
            }
            for length in 1..sealed.len() {
                let error = keyring.unseal(&sealed[..length], &place()).expect_err("cut");
                let is_cut =
                    matches!(error, EncryptionError::Malformed { .. } | EncryptionError::NotAuthentic { .. });
                assert!(is_cut, "cut to {length}: {error}");
            }
        }
    }

    #[test]
    fn what_is_not_sealed_what_is_newer_and_what_has_an_unknown_key_are_different_errors() {
        let sealed = Keyring::new(&key(1, 32)).seal(b"plan", &place()).expect("sealed");
        let id = key(1, 32).id();
        let mut newer = sealed.clone();
        newer[0] = 3;

        for (bytes, complaint) in [
            (&b"plan"[..], "this is not a sealed value".to_owned()),
            (&[], "this is not a sealed value".to_owned()),
            (&newer, "sealed in a form that is newer than this program: version 3".to_owned()),
            (&sealed[..40], "this is not a whole sealed value: it was cut off".to_owned()),
            (&sealed, format!("sealed under key {id}, which is not in the keyring")),
        ] {
            let error = Keyring::new(&key(2, 32)).unseal(bytes, &place()).expect_err("not to be unsealed");
            assert_eq!(error.to_string(), format!("builds.plan of row 7: {complaint}"));
        }
    }

    #[test]
    fn two_keys_of_one_id_are_refused_and_one_key_twice_is_not() {
        // Found among the digests of "next1 N".
        let of = |hex| Key::from_hex(hex).expect("a key");
        let one = of("fdd57dfa0d115cf80bd9424181f5d2c938ce022117134326aae38e69b3614328");
        let other = of("c4da5b9cf4557f69d7763b87e902997af548952995a7314d482cef15517f78a3");

        let error = Keyring::new(&one).with_retired(&other).expect_err("one id");
        let rest = Keyring::new(&key(1, 32)).with_retired(&one).expect("another id");

        assert_eq!(error.to_string(), "two different encryption keys have the id 045b0a78: make another key");
        assert!(rest.with_retired(&other).is_err(), "also among the retired ones");
        assert!(Keyring::new(&one).with_retired(&one).expect("the same key").retired.is_empty());
    }

    #[test]
    fn a_value_above_the_limit_is_refused_with_the_limit() {
        let error = Keyring::new(&key(1, 32)).seal(&vec![b'a'; LONGEST + 1], &place()).expect_err("too long");

        assert_eq!(
            error.to_string(),
            "builds.plan of row 7: the value has 67108865 bytes, and the limit is 67108864"
        );
        assert_eq!(length(LONGEST, &place()).expect("the longest"), LONGEST);
        assert_eq!(length(LONGEST - 1, &place().padded(2)).expect("the longest"), LONGEST);
        let padded = length(LONGEST, &place().padded(2)).expect_err("too long with its padding");
        assert!(
            matches!(padded, EncryptionError::TooLong { length, .. } if length == LONGEST + 2),
            "{padded}"
        );
    }

    #[test]
    fn values_of_one_padding_have_one_length() {
        let keyring = Keyring::new(&key(1, 32));
        let length = |value: &[u8]| keyring.seal(value, &place().padded(16)).expect("sealed").len();

        assert_eq!(length(b"ok"), length(b"failed"));
        assert_eq!(length(&[0; 15]), 47 + 16);
        assert_eq!(length(&[0; 16]), 47 + 32);
    }

    proptest! {
        #[test]
        fn any_value_unseals_in_its_place(
            value in proptest::collection::vec(any::<u8>(), 0..300),
            (row, tenant) in (".{0,12}", proptest::option::of(".{0,12}")),
            padding in 0..100_u16,
        ) {
            let keyring = Keyring::new(&key(1, 32));
            let mut place = Context::new("builds", "plan", row);
            if let Some(tenant) = tenant {
                place = place.tenant(tenant);
            }

            let sealed = keyring.seal(&value, &place.clone().padded(padding)).expect("sealed");

            assert_eq!(*keyring.unseal(&sealed, &place).expect("unsealed"), value);
        }

        /// Of the first bytes, so that many cases get past the header.
        #[test]
        fn no_bytes_unseal_that_were_not_sealed(
            first in proptest::sample::select(vec![vec![], vec![1, 1], vec![1, 2], vec![2, 3, 0], vec![2, 3, 1]]),
            of_the_key in any::<bool>(),
            rest in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let key = key(1, 32);
            let id = if of_the_key { key.id().as_bytes().to_vec() } else { Vec::new() };
            let bytes = [first, id, rest].concat();

            assert!(Keyring::new(&key).unseal(&bytes, &place()).is_err());
        }
    }
}
