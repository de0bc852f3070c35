//! The keys on record in the database, and the processes that have them.

mod destroy;
mod envelope;
mod rules;

use std::time::Duration;

use serde::Serialize;
use sqlx::Row;
use sqlx::postgres::PgRow;
use tokio::time::timeout;

use super::{EncryptionError, Key, KeyId, Keyring};
use crate::{Error, Pool, Schema, Tx, TxOptions};

pub use envelope::RootKey;
pub use rules::{KeyState, MissingKeys};
use rules::{Plan, plan};

/// The migration that makes the tables of the record.
pub const SCHEMA: &[Schema] = &[Schema {
    name: "sealing_keys",
    up: include_str!("../../schema/1_sealing_keys.up.sql"),
    down: include_str!("../../schema/1_sealing_keys.down.sql"),
}];

/// Limit for each transaction on the record, and for its wait for the lock.
const LIMIT: Duration = Duration::from_secs(10);
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// How long rows of processes that have gone are kept, for people who look into what happened.
const KEPT: Duration = Duration::from_hours(24);

/// The keys on record: one table says which key seals, another one which process has which keys.
///
/// A key becomes primary only when every process on record has it. A process is on record before it seals or unseals, and its row
/// counts until its lease ends by the server's clock. So no process meets a value under a key that it does not have, also while
/// the processes of a deployment are replaced one by one. A lease decides when a key becomes primary, and never whether a value
/// can be read: a former primary key stays in the keyrings until it is [destroyed](Self::destroy).
///
/// `db_layer::open` does all of this. The tables are those of [`SCHEMA`].
///
/// Every method is one transaction or one statement with a limit of 10 s. Dropping its future leaves it done or undone as a whole.
#[derive(Clone, Debug)]
pub struct KeyRecord {
    pool: Pool,
}

/// A process on record.
#[derive(Clone, Debug)]
pub struct KeyHolder {
    id: [u8; 16],
    name: String,
    lease: Duration,
    /// Root keys that the process has beside the keys of values.
    roots: Vec<KeyId>,
}

/// A key as it is on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RecordedKey {
    /// The key's id.
    pub id: KeyId,
    /// What it is for.
    pub state: KeyState,
    /// Whether the key itself is on record, sealed under a root key.
    pub is_wrapped: bool,
    #[serde(skip)]
    check: Vec<u8>,
    #[serde(skip)]
    wrapped: Option<Vec<u8>>,
}

/// What a process is to do with its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Standing {
    /// The key to seal under. `None` if the process does not have it.
    pub seals_under: Option<KeyId>,
    /// The key of the process that is not primary yet.
    pub candidate: Option<KeyId>,
    /// The processes that do not have the candidate yet.
    pub waits_for: Vec<String>,
    /// What somebody should look at.
    pub warnings: Vec<String>,
}

/// The record as people see it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct KeyStatus {
    /// The keys, in the order in which they came to be what they are.
    pub keys: Vec<KeyStatusRow>,
    /// The processes that have keys, also those whose lease has ended within the last day.
    pub holders: Vec<HolderStatusRow>,
}

/// A key of the record.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct KeyStatusRow {
    /// The key.
    #[serde(flatten)]
    pub key: RecordedKey,
    /// Since when it is in its state, as RFC 3339 in UTC.
    pub since: String,
    /// Who brought it there.
    pub changed_by: String,
    /// The living processes that do not have it.
    pub waits_for: Vec<String>,
}

/// A process of the record.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct HolderStatusRow {
    /// Its name.
    pub name: String,
    /// The keys that it has.
    pub keys: Vec<KeyId>,
    /// The key that it sealed under when it was last heard of.
    pub seals_under: Option<KeyId>,
    /// How long its lease still lasts, in seconds; negative if it has ended.
    pub lease_s: f64,
}

/// What came of a promotion.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Promotion {
    /// The key is primary.
    Done,
    /// These processes do not have the key yet, and nothing was changed.
    WaitsFor(Vec<String>),
}

/// The record and a program do not agree, or the record could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyRecordError {
    /// The tables are not there.
    #[error(
        "the database has no table `sealing_keys`: add the migration of `db_core::encryption::SCHEMA` to yours"
    )]
    NoTables,
    /// The database has values under keys that the program was not given.
    #[error(
        "the database has values under the keys {on_record}, and this program was given {given}: give it the missing ones as old \
         keys, or destroy them on record once nothing needs them"
    )]
    Missing {
        /// The keys on record that are in use, each with its state.
        on_record: String,
        /// The keys that were given.
        given: String,
    },
    /// A given key is not the one on record that has its id.
    #[error(
        "the key {0} on record is another key than the given one with this id: give the right key, or make a new one"
    )]
    OtherKey(KeyId),
    /// The key was destroyed.
    #[error("the key {0} was destroyed: seal under another one")]
    Destroyed(KeyId),
    /// There is no such key on record.
    #[error("the key {0} is not on record")]
    NotOnRecord(KeyId),
    /// The key is in another state than the operation wants.
    #[error("the key {id} is {state}, and has to be {wanted}")]
    WrongState {
        /// The key.
        id: KeyId,
        /// Its state.
        state: KeyState,
        /// What it would have to be.
        wanted: &'static str,
    },
    /// Processes seal under the key.
    #[error("the key {id} cannot be destroyed: {by} may still seal under it")]
    InUse {
        /// The key.
        id: KeyId,
        /// The processes.
        by: String,
    },
    /// Values are sealed under the key.
    #[error("the key {id} cannot be destroyed: {left}")]
    Needed {
        /// The key.
        id: KeyId,
        /// Which columns have how many of its values.
        left: String,
    },
    /// A key could not be made, wrapped or unwrapped.
    #[error(transparent)]
    Key(#[from] EncryptionError),
    /// The root key did not wrap or unwrap a data key.
    #[error("the root key cannot be used: {0}")]
    RootKey(String),
    /// A statement failed.
    #[error("{what}: {cause}")]
    Database {
        /// What was tried.
        what: &'static str,
        /// The error.
        cause: Error,
    },
}

impl KeyRecordError {
    fn database(what: &'static str) -> impl Fn(Error) -> Self {
        move |cause| {
            if cause.sqlstate().as_deref() == Some("42P01") {
                Self::NoTables
            } else {
                Self::Database { what, cause }
            }
        }
    }
}

impl KeyHolder {
    /// A process with a random identity. `name` is for people: the host and the number of the process.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::Random`].
    pub fn new(name: impl Into<String>, lease: Duration) -> Result<Self, EncryptionError> {
        let mut id = [0; 16];
        super::key::random(&mut id)?;
        Ok(Self { id, name: name.into(), lease, roots: Vec::new() })
    }

    /// This process, by its host and its number.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::Random`].
    pub fn this_process(lease: Duration) -> Result<Self, EncryptionError> {
        #[cfg(unix)]
        let host = nix::unistd::gethostname().ok().map(|host| host.to_string_lossy().into_owned());
        #[cfg(not(unix))]
        let host = std::env::var("COMPUTERNAME").ok();
        let host = host.as_deref().unwrap_or("unknown host");
        Self::new(format!("{host}, process {}", std::process::id()), lease)
    }

    /// Says which root keys the process has, for [`KeyRecord::rewrap`].
    pub fn set_roots(&mut self, roots: &Keyring) {
        self.roots = roots.keys().map(Key::id).collect();
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All keys that it has, as they are in the table.
    fn ids(&self, keys: &Keyring) -> Vec<Vec<u8>> {
        keys.keys().map(Key::id).chain(self.roots.iter().copied()).map(bytes).collect()
    }
}

impl KeyRecord {
    /// The record in the database of a pool.
    #[must_use]
    pub fn new(pool: &Pool) -> Self {
        Self { pool: pool.clone() }
    }

    /// Puts a process on record with its keys, and says what to do with them. Keys that are not on record are put there. The primary
    /// key of `given` becomes primary on record if every living process has it.
    ///
    /// # Errors
    ///
    /// [`KeyRecordError::Missing`] unless `missing` lets it pass, [`KeyRecordError::OtherKey`], [`KeyRecordError::Destroyed`],
    /// [`KeyRecordError::NoTables`], [`KeyRecordError::Database`].
    pub async fn register(
        &self,
        holder: &KeyHolder,
        given: &Keyring,
        missing: MissingKeys,
    ) -> Result<Standing, KeyRecordError> {
        let failed = KeyRecordError::database("put this process on record with its encryption keys");
        self.locked(&failed, async |tx| {
            let rows = recorded(tx).await.map_err(&failed)?;
            let Plan { add, seals_under, candidate, warnings } = plan(&rows, given, missing)?;
            for (key, state) in add {
                add_key(tx, key, state, None, &holder.name).await.map_err(&failed)?;
            }
            take_lease(tx, holder, given, seals_under).await.map_err(&failed)?;
            let mut standing = Standing { seals_under, candidate, waits_for: Vec::new(), warnings };
            if let Some(id) = candidate {
                match promote(tx, id, false, &holder.name).await.map_err(&failed)? {
                    Promotion::Done => {
                        standing = Standing { seals_under: Some(id), candidate: None, ..standing };
                        take_lease(tx, holder, given, Some(id)).await.map_err(&failed)?;
                    }
                    Promotion::WaitsFor(names) => standing.waits_for = names,
                }
            }
            Ok(standing)
        })
        .await
    }

    /// Extends the lease of a process, says which keys it has by now, and reads the keys on record. `None` if its lease had ended: then it has to
    /// [register](Self::register) again before it seals or unseals.
    ///
    /// # Errors
    ///
    /// [`KeyRecordError::NoTables`] and [`KeyRecordError::Database`].
    pub async fn renew(
        &self,
        holder: &KeyHolder,
        keys: &Keyring,
        seals_under: Option<KeyId>,
    ) -> Result<Option<Vec<RecordedKey>>, KeyRecordError> {
        // One statement, so that a process that is frozen in between holds no lock.
        let renewed = sqlx::query(
            "with mine as (
                 update sealing_key_holders
                 set expires = clock_timestamp() + make_interval(secs => $2), keys = $3, seals_under = $4
                 where holder = $1 and expires > clock_timestamp()
                 returning true
             )
             select k.id, k.state, k.check_value, k.wrapped
             from mine left join sealing_keys k on true
             order by k.since, k.id",
        )
        .bind(&holder.id[..])
        .bind(holder.lease.as_secs_f64())
        .bind(holder.ids(keys))
        .bind(seals_under.map(bytes))
        .fetch_all(self.pool.handle());
        let rows = limited(renewed)
            .await
            .map_err(KeyRecordError::database("extend the lease of the encryption keys"))?;
        if rows.is_empty() {
            return Ok(None);
        }
        let of_keys =
            rows.iter().filter(|row| row.try_get::<Option<Vec<u8>>, _>(0).is_ok_and(|id| id.is_some()));
        let keys: Result<_, _> = of_keys.map(RecordedKey::read).collect();
        keys.map(Some)
            .map_err(Error::from)
            .map_err(KeyRecordError::database("read the encryption keys on record"))
    }

    /// Takes a process off the record. Others no longer wait for it.
    ///
    /// # Errors
    ///
    /// [`KeyRecordError::NoTables`] and [`KeyRecordError::Database`].
    pub async fn leave(&self, holder: &KeyHolder) -> Result<(), KeyRecordError> {
        let left = sqlx::query("delete from sealing_key_holders where holder = $1")
            .bind(&holder.id[..])
            .execute(self.pool.handle());
        limited(left).await.map(drop).map_err(KeyRecordError::database("take this process off the record"))
    }

    /// Puts keys on record that are not there: as the primary key if there is none, else as known.
    ///
    /// # Errors
    ///
    /// [`KeyRecordError::OtherKey`], [`KeyRecordError::NoTables`], [`KeyRecordError::Database`].
    pub async fn add(&self, keys: &Keyring, by: &str) -> Result<Vec<(KeyId, KeyState)>, KeyRecordError> {
        let failed = KeyRecordError::database("put encryption keys on record");
        self.locked(&failed, async |tx| {
            let rows = recorded(tx).await.map_err(&failed)?;
            let Plan { add, .. } = plan(&rows, keys, MissingKeys::Ignore)?;
            let mut added = Vec::new();
            for (key, state) in add {
                add_key(tx, key, state, None, by).await.map_err(&failed)?;
                added.push((key.id(), state));
            }
            Ok(added)
        })
        .await
    }

    /// Makes a key on record the primary one, if every living process has it; else nothing is changed. `force` does it in any
    /// case: processes without the key then cannot read what others seal.
    ///
    /// # Errors
    ///
    /// [`KeyRecordError::NotOnRecord`], [`KeyRecordError::Destroyed`], [`KeyRecordError::NoTables`],
    /// [`KeyRecordError::Database`].
    pub async fn promote(&self, id: KeyId, force: bool, by: &str) -> Result<Promotion, KeyRecordError> {
        let failed = KeyRecordError::database("promote an encryption key");
        self.locked(&failed, async |tx| match state(tx, id).await.map_err(&failed)? {
            None => Err(KeyRecordError::NotOnRecord(id)),
            Some(KeyState::Destroyed) => Err(KeyRecordError::Destroyed(id)),
            Some(KeyState::Primary) => Ok(Promotion::Done),
            Some(_) => promote(tx, id, force, by).await.map_err(&failed),
        })
        .await
    }

    /// Retires a known key, so that no process makes it primary any more. The primary key is retired by promoting another one.
    ///
    /// # Errors
    ///
    /// [`KeyRecordError::NotOnRecord`], [`KeyRecordError::WrongState`], [`KeyRecordError::NoTables`],
    /// [`KeyRecordError::Database`].
    pub async fn retire(&self, id: KeyId, by: &str) -> Result<(), KeyRecordError> {
        let failed = KeyRecordError::database("retire an encryption key");
        self.locked(&failed, async |tx| match state(tx, id).await.map_err(&failed)? {
            None => Err(KeyRecordError::NotOnRecord(id)),
            Some(KeyState::Retired) => Ok(()),
            Some(KeyState::Known) => set_state(tx, id, KeyState::Retired, by).await.map_err(&failed),
            Some(state) => Err(KeyRecordError::WrongState {
                id,
                state,
                wanted: "known: the primary key is retired when another one is promoted",
            }),
        })
        .await
    }

    /// The keys and the processes on record.
    ///
    /// # Errors
    ///
    /// [`KeyRecordError::NoTables`] and [`KeyRecordError::Database`].
    pub async fn status(&self) -> Result<KeyStatus, KeyRecordError> {
        let failed = KeyRecordError::database("read the encryption keys on record");
        let keys = sqlx::query(
            "select k.id, k.state, k.check_value, k.wrapped,
               to_char(k.since at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), k.changed_by,
               coalesce((select array_agg(h.name order by h.name)
                         from sealing_key_holders h
                         where h.expires > clock_timestamp() and not k.id = any(h.keys)), '{}')
             from sealing_keys k
             order by k.since, k.id",
        )
        .fetch_all(self.pool.handle());
        let keys = limited(keys).await.map_err(&failed)?;
        let holders = sqlx::query(
            "select name, keys, seals_under, extract(epoch from expires - clock_timestamp())::float8
             from sealing_key_holders
             order by expires > clock_timestamp() desc, name",
        )
        .fetch_all(self.pool.handle());
        let holders = limited(holders).await.map_err(&failed)?;
        let read = || -> Result<KeyStatus, sqlx::Error> {
            let row = |row: &PgRow| {
                Ok::<_, sqlx::Error>(KeyStatusRow {
                    key: RecordedKey::read(row)?,
                    since: row.try_get(4)?,
                    changed_by: row.try_get(5)?,
                    waits_for: row.try_get(6)?,
                })
            };
            let holder = |row: &PgRow| {
                let keys: Vec<Vec<u8>> = row.try_get(1)?;
                let seals_under: Option<Vec<u8>> = row.try_get(2)?;
                Ok::<_, sqlx::Error>(HolderStatusRow {
                    name: row.try_get(0)?,
                    keys: keys.iter().map(|id| id_of(id)).collect::<Result<_, _>>()?,
                    seals_under: seals_under.map(|id| id_of(&id)).transpose()?,
                    lease_s: row.try_get(3)?,
                })
            };
            Ok(KeyStatus {
                keys: keys.iter().map(row).collect::<Result<_, _>>()?,
                holders: holders.iter().map(holder).collect::<Result<_, _>>()?,
            })
        };
        read().map_err(Error::from).map_err(failed)
    }

    /// Runs `work` in a transaction that no other change of the record is concurrent with. Reading the record goes on meanwhile.
    async fn locked<T>(
        &self,
        failed: &impl Fn(Error) -> KeyRecordError,
        work: impl AsyncFnOnce(&mut Tx) -> Result<T, KeyRecordError>,
    ) -> Result<T, KeyRecordError> {
        let options = TxOptions::default().read_write().lock_timeout(LOCK_LIMIT);
        let whole = async {
            let mut tx = self.pool.handle().begin_with(options).await.map_err(failed)?;
            sqlx::query("lock table sealing_keys in share row exclusive mode")
                .execute(&mut tx)
                .await
                .map_err(Error::from)
                .map_err(failed)?;
            // An error drops the transaction, which rolls it back.
            let done = work(&mut tx).await?;
            tx.commit().await.map_err(failed)?;
            Ok(done)
        };
        timeout(LIMIT, whole).await.unwrap_or_else(|_| Err(failed(too_late())))
    }
}

impl RecordedKey {
    /// From the columns `id, state, check_value, wrapped`.
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let (id, state, wrapped): (Vec<u8>, String, Option<Vec<u8>>) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(3)?);
        Ok(Self {
            id: id_of(&id)?,
            state: KeyState::read(&state).ok_or_else(|| unreadable(format!("no key is `{state}`")))?,
            is_wrapped: wrapped.is_some(),
            check: row.try_get(2)?,
            wrapped,
        })
    }
}

fn id_of(bytes: &[u8]) -> Result<KeyId, sqlx::Error> {
    KeyId::from_bytes(bytes).ok_or_else(|| unreadable("the id of a key has four bytes".to_owned()))
}

fn unreadable(problem: String) -> sqlx::Error {
    sqlx::Error::Decode(problem.into())
}

fn too_late() -> Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()).into()
}

async fn limited<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Error> {
    timeout(LIMIT, asked).await.map_or_else(|_| Err(too_late()), |answered| answered.map_err(Error::from))
}

fn bytes(id: KeyId) -> Vec<u8> {
    id.as_bytes().to_vec()
}

async fn recorded(tx: &mut Tx) -> Result<Vec<RecordedKey>, Error> {
    let rows = sqlx::query("select id, state, check_value, wrapped from sealing_keys order by since, id")
        .fetch_all(tx)
        .await?;
    Ok(rows.iter().map(RecordedKey::read).collect::<Result<_, _>>()?)
}

async fn state(tx: &mut Tx, id: KeyId) -> Result<Option<KeyState>, Error> {
    Ok(recorded(tx).await?.into_iter().find(|key| key.id == id).map(|key| key.state))
}

async fn add_key(
    tx: &mut Tx,
    key: &Key,
    state: KeyState,
    wrapped: Option<&[u8]>,
    by: &str,
) -> Result<(), Error> {
    sqlx::query(
        "insert into sealing_keys (id, check_value, state, wrapped, changed_by) values ($1, $2, $3, $4, $5)",
    )
    .bind(bytes(key.id()))
    .bind(&key.check_value()[..])
    .bind(state.name())
    .bind(wrapped)
    .bind(by)
    .execute(tx)
    .await?;
    Ok(())
}

async fn set_state(tx: &mut Tx, id: KeyId, state: KeyState, by: &str) -> Result<(), Error> {
    sqlx::query(
        "update sealing_keys set state = $2, since = clock_timestamp(), changed_by = $3 where id = $1",
    )
    .bind(bytes(id))
    .bind(state.name())
    .bind(by)
    .execute(tx)
    .await?;
    Ok(())
}

/// Puts a process on record, or extends what is there, and removes those that are long gone.
async fn take_lease(
    tx: &mut Tx,
    holder: &KeyHolder,
    keys: &Keyring,
    seals_under: Option<KeyId>,
) -> Result<(), Error> {
    sqlx::query(
        "delete from sealing_key_holders where expires < clock_timestamp() - make_interval(secs => $1)",
    )
    .bind(KEPT.as_secs_f64())
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "insert into sealing_key_holders (holder, name, keys, seals_under, expires)
         values ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5))
         on conflict (holder) do update
         set keys = excluded.keys, seals_under = excluded.seals_under, expires = excluded.expires",
    )
    .bind(&holder.id[..])
    .bind(&holder.name)
    .bind(holder.ids(keys))
    .bind(seals_under.map(bytes))
    .bind(holder.lease.as_secs_f64())
    .execute(tx)
    .await?;
    Ok(())
}

/// The living processes that do not have a key.
async fn living_without(tx: &mut Tx, id: KeyId) -> Result<Vec<String>, Error> {
    // The row locks wait for a lease that is being extended, and then look at it again.
    let names = sqlx::query_scalar(
        "select name from sealing_key_holders
         where expires > clock_timestamp() and not $1 = any(keys)
         order by name
         for share",
    )
    .bind(bytes(id))
    .fetch_all(tx)
    .await?;
    Ok(names)
}

/// Makes a key primary if every living process has it, or `force`.
async fn promote(tx: &mut Tx, id: KeyId, force: bool, by: &str) -> Result<Promotion, Error> {
    let without = living_without(tx, id).await?;
    if !without.is_empty() && !force {
        return Ok(Promotion::WaitsFor(without));
    }
    sqlx::query(
        "update sealing_keys set state = 'retired', since = clock_timestamp(), changed_by = $1 where state = 'primary'",
    )
    .bind(by)
    .execute(&mut *tx)
    .await?;
    set_state(tx, id, KeyState::Primary, by).await?;
    Ok(Promotion::Done)
}
