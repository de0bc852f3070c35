//! The keys that a program has at the moment.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::{Notify, watch};
use zeroize::Zeroizing;

use super::{Context, EncryptionError, Key, KeyId, Keyring, Strategy};

/// The keys of a running program, which change while it runs.
///
/// `db_layer::open` makes them and keeps them up to date: which keys there are, by their [sources](super::KeySources), and which
/// one seals, by the [record](super::KeyRecord) in the database. Sealing and unsealing take the keys that are there at that moment, and wait for
/// nothing.
///
/// Before the program is on record, and while it is not, both fail with [`EncryptionError::KeysAway`].
pub struct Keys {
    state: watch::Sender<State>,
    wanted: Notify,
    totals: Counters,
    /// The keys that values have named and that were not there.
    unknown: Mutex<BTreeSet<KeyId>>,
}

/// The most unknown keys that are remembered. A damaged value may name any.
const MOST_UNKNOWN: usize = 100;

#[derive(Default)]
struct State {
    /// `None` while the program is not on record.
    keyring: Option<Keyring>,
    /// Whether the keyring's primary key is the one on record.
    seals: bool,
    /// Why something cannot be sealed or unsealed.
    why: String,
}

/// What was done with the keys of a program so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyTotals {
    /// Values that were sealed.
    pub sealed: u64,
    /// Values that were unsealed.
    pub unsealed: u64,
    /// Attempts to seal or to unseal while the keys were away.
    pub away: u64,
    /// Values under keys that were not there.
    pub unknown_key: u64,
    /// Values that were altered, or belong to another row or column.
    pub not_authentic: u64,
    /// Bytes that are no sealed value, or no whole one, or of a newer form.
    pub unreadable: u64,
    /// Values that could not be sealed: too long, or without random bytes.
    pub not_sealed: u64,
}

#[derive(Default)]
struct Counters {
    sealed: AtomicU64,
    unsealed: AtomicU64,
    away: AtomicU64,
    unknown_key: AtomicU64,
    not_authentic: AtomicU64,
    unreadable: AtomicU64,
    not_sealed: AtomicU64,
}

impl Keys {
    /// No keys yet.
    #[must_use]
    pub fn away(why: impl Into<String>) -> Self {
        let state = State { why: why.into(), ..State::default() };
        Self {
            state: watch::Sender::new(state),
            wanted: Notify::new(),
            totals: Counters::default(),
            unknown: Mutex::default(),
        }
    }

    /// Uses these keys from now on. `why` says why nothing can be sealed; without it, the keyring's primary key seals.
    pub fn put(&self, keyring: Keyring, why: Option<String>) {
        self.state.send_replace(State {
            keyring: Some(keyring),
            seals: why.is_none(),
            why: why.unwrap_or_default(),
        });
    }

    /// Uses no keys from now on.
    pub fn take_away(&self, why: impl Into<String>) {
        self.state.send_replace(State { why: why.into(), ..State::default() });
    }

    /// The keyring in use.
    #[must_use]
    pub fn keyring(&self) -> Option<Keyring> {
        self.state.borrow().keyring.clone()
    }

    /// The key that seals. `None` while none does.
    #[must_use]
    pub fn seals_under(&self) -> Option<KeyId> {
        let state = self.state.borrow();
        state.keyring.as_ref().filter(|_| state.seals)?.keys().next().map(Key::id)
    }

    /// Why nothing can be sealed or unsealed at the moment.
    #[must_use]
    pub fn why(&self) -> Option<String> {
        let state = self.state.borrow();
        (!state.seals).then(|| state.why.clone())
    }

    /// What was done so far.
    #[must_use]
    pub fn totals(&self) -> KeyTotals {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { sealed, unsealed, away, unknown_key, not_authentic, unreadable, not_sealed } =
            &self.totals;
        KeyTotals {
            sealed: of(sealed),
            unsealed: of(unsealed),
            away: of(away),
            unknown_key: of(unknown_key),
            not_authentic: of(not_authentic),
            unreadable: of(unreadable),
            not_sealed: of(not_sealed),
        }
    }

    /// The keys that values have named so far and that were not there, up to 100 of them. Those that are there by now are left out.
    #[must_use]
    pub fn unknown(&self) -> Vec<KeyId> {
        let state = self.state.borrow();
        let is_there =
            |id: &KeyId| state.keyring.iter().any(|keyring| keyring.keys().any(|key| key.id() == *id));
        let unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        unknown.iter().filter(|id| !is_there(id)).copied().collect()
    }

    /// Waits until values can be unsealed. A database that was opened lazily comes to its keys at the first attempt to seal or to
    /// unseal, which fails, or by this call. Cancel-safe; give it a deadline.
    pub async fn ready(&self) {
        let mut state = self.state.subscribe();
        self.wanted.notify_one();
        // The sender is in `self`, so it is there for as long.
        state.wait_for(|state| state.keyring.is_some()).await.ok();
    }

    /// Waits until somebody needs a key that is not there. Cancel-safe. One task may wait.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// The keyring to seal with, or to unseal with.
    fn at_hand(&self, place: &Context, to_seal: bool) -> Result<Keyring, EncryptionError> {
        let state = self.state.borrow();
        match &state.keyring {
            Some(keyring) if state.seals || !to_seal => Ok(keyring.clone()),
            _ => Err(EncryptionError::KeysAway { place: place.to_string(), why: state.why.clone() }),
        }
    }

    fn counted<T>(
        &self,
        done: Result<T, EncryptionError>,
        success: &AtomicU64,
    ) -> Result<T, EncryptionError> {
        let counter = match &done {
            Ok(_) => success,
            Err(EncryptionError::KeysAway { .. }) => &self.totals.away,
            Err(EncryptionError::UnknownKey { .. }) => &self.totals.unknown_key,
            Err(EncryptionError::NotAuthentic { .. }) => &self.totals.not_authentic,
            Err(EncryptionError::TooLong { .. } | EncryptionError::Random(_)) => &self.totals.not_sealed,
            Err(_) => &self.totals.unreadable,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        match &done {
            Err(EncryptionError::KeysAway { .. }) => self.wanted.notify_one(),
            Err(EncryptionError::UnknownKey { place, key_id }) => {
                self.remember(*key_id, place);
                self.wanted.notify_one();
            }
            _ => {}
        }
        done
    }

    /// Logs each unknown key once.
    fn remember(&self, id: KeyId, place: &str) {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        if unknown.len() < MOST_UNKNOWN && unknown.insert(id) {
            tracing::error!(
                key_id = %id,
                "a value does not unseal, {place}: it is sealed under a key that this process does not have. Other values under this key \
                 are counted, and not logged"
            );
        }
    }
}

impl Strategy for Keys {
    /// Seals under the primary key on record.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::KeysAway`], and those of [`Keyring`].
    fn seal(&self, plain: &[u8], place: &Context) -> Result<Vec<u8>, EncryptionError> {
        let sealed = self.at_hand(place, true).and_then(|keyring| keyring.seal(plain, place));
        self.counted(sealed, &self.totals.sealed)
    }

    /// Unseals under the key that the value names.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::KeysAway`], and those of [`Keyring`].
    fn unseal(&self, sealed: &[u8], place: &Context) -> Result<Zeroizing<Vec<u8>>, EncryptionError> {
        let plain = self.at_hand(place, false).and_then(|keyring| keyring.unseal(sealed, place));
        self.counted(plain, &self.totals.unsealed)
    }

    fn sealing_key(&self) -> Option<KeyId> {
        self.seals_under()
    }

    fn blind(&self, label: &[&[u8]], text: &[u8]) -> Vec<(KeyId, [u8; 32])> {
        self.keyring().map(|keyring| keyring.blind(label, text)).unwrap_or_default()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.borrow();
        let mut shown = f.debug_struct("Keys");
        if let Some(keyring) = &state.keyring {
            shown.field("keyring", keyring);
        }
        if !state.seals {
            shown.field("why", &state.why);
        }
        shown.finish_non_exhaustive()
    }
}
