//! Data keys on record, wrapped by a root key.

use std::fmt;

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::{
    KeyRecord, KeyRecordError, KeyState, Promotion, add_key, bytes, limited, living_without, recorded,
};
use crate::Error;
use crate::encryption::form::Parts;
use crate::encryption::{Context, Key, KeyId, Keyring, Strategy};

/// A key that wraps data keys and never touches a value, so that replacing it touches no value either.
///
/// A [`Keyring`] is one: it wraps under its primary key, and unwraps under each. Implement the trait for a key service whose client
/// the program has anyway; for others, a [command](crate::encryption::KeySource::Command) is enough.
pub trait RootKey: fmt::Debug + Send + Sync {
    /// Wraps the bytes of the data key with this id. An error says what failed, without secrets.
    fn wrap<'a>(&'a self, key: &'a [u8], id: KeyId) -> BoxFuture<'a, Result<Vec<u8>, String>>;

    /// Unwraps what [`wrap`](Self::wrap) returned for the same id.
    fn unwrap<'a>(
        &'a self,
        wrapped: &'a [u8],
        id: KeyId,
    ) -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, String>>;

    /// The key that wraps, if processes say on record that they have it.
    fn id(&self) -> Option<KeyId> {
        None
    }

    /// Whether the key that wraps has wrapped this.
    fn has_wrapped(&self, wrapped: &[u8]) -> bool {
        let _ = wrapped;
        false
    }
}

fn place(id: KeyId) -> Context {
    Context::new("sealing_keys", "wrapped", id)
}

impl RootKey for Keyring {
    fn wrap<'a>(&'a self, key: &'a [u8], id: KeyId) -> BoxFuture<'a, Result<Vec<u8>, String>> {
        Box::pin(async move { self.seal(key, &place(id)).map_err(|error| error.to_string()) })
    }

    fn unwrap<'a>(
        &'a self,
        wrapped: &'a [u8],
        id: KeyId,
    ) -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, String>> {
        Box::pin(async move { self.unseal(wrapped, &place(id)).map_err(|error| error.to_string()) })
    }

    fn id(&self) -> Option<KeyId> {
        self.keys().next().map(Key::id)
    }

    fn has_wrapped(&self, wrapped: &[u8]) -> bool {
        Parts::read(wrapped).is_ok_and(|parts| Some(parts.key_id) == RootKey::id(self))
    }
}

impl KeyRecord {
    /// The data keys on record, unwrapped: a known one first, else the primary one. If there is none, one is made. Keys of `direct`
    /// that are on record without being wrapped are among them: values may have been sealed under them before.
    ///
    /// # Errors
    ///
    /// [`KeyRecordError::RootKey`], [`KeyRecordError::NoTables`], [`KeyRecordError::Database`].
    pub async fn data_keys(
        &self,
        root: &dyn RootKey,
        direct: Option<&Keyring>,
        by: &str,
    ) -> Result<Keyring, KeyRecordError> {
        let mut rows = self.read().await?;
        if !rows.iter().any(|row| row.is_wrapped) {
            self.make(root, true, by).await?;
            rows = self.read().await?;
        }
        let mut keys = Vec::new();
        for row in rows.iter().filter(|row| row.state != KeyState::Destroyed) {
            let key = match &row.wrapped {
                Some(wrapped) => unwrapped(root, wrapped, row.id).await?,
                None => match direct.and_then(|direct| direct.keys().find(|key| key.id() == row.id)) {
                    Some(key) => key.clone(),
                    None => continue,
                },
            };
            // The newest of its state is read last.
            let rank = match row.state {
                KeyState::Known if row.is_wrapped => 0,
                KeyState::Primary => 1,
                _ => 2,
            };
            keys.push((rank, key));
        }
        keys.reverse();
        keys.sort_by_key(|(rank, _)| *rank);
        let mut keys = keys.iter().map(|(_, key)| key);
        let first =
            keys.next().ok_or_else(|| KeyRecordError::RootKey("no data key is on record".to_owned()))?;
        Ok(keys.try_fold(Keyring::new(first), Keyring::with_retired)?)
    }

    /// Makes a data key, wraps it and puts it on record: as the primary key if there is none, else as known.
    ///
    /// # Errors
    ///
    /// As [`data_keys`](Self::data_keys), and [`KeyRecordError::Key`] without random bytes.
    pub async fn add_data_key(
        &self,
        root: &dyn RootKey,
        by: &str,
    ) -> Result<(KeyId, KeyState), KeyRecordError> {
        self.make(root, false, by).await
    }

    /// Makes a data key, unless only the first one is wanted and there is one.
    async fn make(
        &self,
        root: &dyn RootKey,
        only_first: bool,
        by: &str,
    ) -> Result<(KeyId, KeyState), KeyRecordError> {
        let failed = KeyRecordError::database("put a data key on record");
        let key = Key::generate()?;
        // Before the lock: a key service may take its time.
        let wrapped = root.wrap(key.expose(), key.id()).await.map_err(KeyRecordError::RootKey)?;
        self.locked(&failed, async |tx| {
            let rows = recorded(tx).await.map_err(&failed)?;
            let first = rows.iter().find(|row| row.is_wrapped).filter(|_| only_first);
            if let Some(first) = first {
                return Ok((first.id, first.state));
            }
            let is_first = rows.iter().all(|row| row.state != KeyState::Primary);
            let state = if is_first { KeyState::Primary } else { KeyState::Known };
            add_key(tx, &key, state, Some(&wrapped), by).await.map_err(&failed)?;
            Ok((key.id(), state))
        })
        .await
    }

    /// Wraps all data keys under the key that wraps now, and touches no value. `Done` also if nothing was left to do; nothing is
    /// changed while living processes do not have that key, unless `force`.
    ///
    /// # Errors
    ///
    /// As [`data_keys`](Self::data_keys).
    pub async fn rewrap(&self, root: &dyn RootKey, force: bool) -> Result<Promotion, KeyRecordError> {
        let failed = KeyRecordError::database("wrap the data keys again");
        for row in self.read().await? {
            let Some(before) = row.wrapped.filter(|wrapped| !root.has_wrapped(wrapped)) else { continue };
            let key = unwrapped(root, &before, row.id).await?;
            let after = root.wrap(key.expose(), row.id).await.map_err(KeyRecordError::RootKey)?;
            let waits_for = self
                .locked(&failed, async |tx| {
                    if let (Some(id), false) = (root.id(), force) {
                        let without = living_without(tx, id).await.map_err(&failed)?;
                        if !without.is_empty() {
                            return Ok(without);
                        }
                    }
                    sqlx::query("update sealing_keys set wrapped = $3 where id = $1 and wrapped = $2")
                        .bind(bytes(row.id))
                        .bind(&before)
                        .bind(&after)
                        .execute(tx)
                        .await
                        .map_err(Error::from)
                        .map_err(&failed)?;
                    Ok(Vec::new())
                })
                .await?;
            if !waits_for.is_empty() {
                return Ok(Promotion::WaitsFor(waits_for));
            }
        }
        Ok(Promotion::Done)
    }

    async fn read(&self) -> Result<Vec<super::RecordedKey>, KeyRecordError> {
        let failed = KeyRecordError::database("read the encryption keys on record");
        let rows = sqlx::query("select id, state, check_value, wrapped from sealing_keys order by since, id")
            .fetch_all(self.pool.handle());
        let rows = limited(rows).await.map_err(&failed)?;
        let rows: Result<Vec<_>, _> = rows.iter().map(super::RecordedKey::read).collect();
        rows.map_err(Error::from).map_err(failed)
    }
}

async fn unwrapped(root: &dyn RootKey, wrapped: &[u8], id: KeyId) -> Result<Key, KeyRecordError> {
    let bytes = root.unwrap(wrapped, id).await.map_err(KeyRecordError::RootKey)?;
    let key = Key::from_bytes(bytes.to_vec())?;
    // A key service may have given another one.
    if key.id() == id { Ok(key) } else { Err(KeyRecordError::OtherKey(id)) }
}
