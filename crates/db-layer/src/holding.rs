//! Holding encryption keys: on record, up to date, and until the end.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use db_core::encryption::{
    Columns, Fallback, KeyHolder, KeyId, KeyReader, KeyRecord, KeyRecordError, KeySourceError, KeySources,
    KeyState, KeyTotals, Keyring, Keys, MissingKeys, NoEncryption, RecordedKey, RootKey, Standing, Strategy,
};
use db_core::{Config, Pool};
use db_migrate::rekey::{self, AtOpen, Background, BackgroundState, Mode, RekeyError};
use derive_setters::Setters;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::OpenError;

/// Limit for taking a process off the record when it ends.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// The shortest pause between two looks at keys and record, however many values want a key.
const PAUSE: Duration = Duration::from_secs(1);

/// The shortest pause between two runs of a key command because a key on record is not there.
const ANEW: Duration = Duration::from_secs(30);

/// How a process holds its encryption keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Setters)]
#[non_exhaustive]
pub struct KeyOptions {
    /// How long the process counts as living after it was last heard of, by the server's clock (default 60 s). For so long, a process that
    /// has died holds up the promotion of a key that it did not have.
    pub lease: Duration,
    /// How often to extend the lease, and to look at files and folders of keys (default 10 s).
    pub renew: Duration,
    /// What to do when a key that values may be sealed under was not given (default: do not open).
    pub missing: MissingKeys,
    /// Whether the given keys are root keys (default false): they seal no value, but wrap data keys that are on record, and are replaced
    /// without touching a value.
    pub envelope: bool,
    /// Whether values of declared columns that are not sealed yet are read as they are (default false). For the time in which a column is
    /// being sealed: anybody who can write to the column can then replace a sealed value by a plain one.
    pub reads_plain: bool,
    /// Whether keys and processes are on record in the database (default true). Without it, there need not be its tables, nobody notices a
    /// wrong key before a value does not unseal, and a new key must be an old key of all processes first.
    pub recorded: bool,
}

impl Default for KeyOptions {
    fn default() -> Self {
        Self {
            lease: Duration::from_mins(1),
            renew: Duration::from_secs(10),
            missing: MissingKeys::default(),
            envelope: false,
            reads_plain: false,
            recorded: true,
        }
    }
}

/// The state of a process's encryption keys.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SealingHealth {
    /// The key that seals. `None` while nothing is sealed.
    pub primary: Option<KeyId>,
    /// All keys that unseal.
    pub keys: Vec<KeyId>,
    /// The key that is to become primary.
    pub candidate: Option<KeyId>,
    /// The processes that do not have it yet.
    pub waits_for: Vec<String>,
    /// What somebody has to look at: keys that cannot be read, that are not those of the database, or that are missing.
    pub alarm: Option<String>,
    /// The keys that values have named and that this process does not have.
    pub unknown: Vec<KeyId>,
    /// What was sealed and unsealed so far, and what could not be.
    pub totals: KeyTotals,
    /// Re-keying in the background; `None` if this process does not do it.
    pub rekeying: Option<BackgroundState>,
}

/// What the task finds out for others.
#[derive(Clone, Default, PartialEq, Eq)]
struct Told {
    candidate: Option<KeyId>,
    waits_for: Vec<String>,
    alarm: Option<String>,
}

/// A process that has read its keys, and is not on record yet.
pub(crate) struct Holder {
    keys: Arc<Keys>,
    given: Given,
    process: KeyHolder,
    options: KeyOptions,
    /// The outcome of being put on record.
    registered: Mutex<Option<(Keyring, Standing)>>,
}

/// What the sources of keys gave.
struct Given {
    reader: Option<KeyReader>,
    /// What it read last.
    keys: Option<Keyring>,
    root: Option<Arc<dyn RootKey>>,
}

impl Given {
    /// The keys to be on record with: the given ones, or the data keys that they unwrap.
    async fn for_values(
        &self,
        record: &KeyRecord,
        holder: &KeyHolder,
        options: KeyOptions,
    ) -> Result<Keyring, KeyRecordError> {
        match (&self.root, &self.keys) {
            (Some(root), keys) => record.data_keys(&**root, keys.as_ref(), holder.name()).await,
            (None, Some(keys)) if options.envelope => record.data_keys(keys, Some(keys), holder.name()).await,
            (None, Some(keys)) => Ok(keys.clone()),
            (None, None) => unreachable!("a holder has keys or a root key"),
        }
    }

    fn is_envelope(&self, options: KeyOptions) -> bool {
        self.root.is_some() || options.envelope
    }
}

impl Holder {
    /// Reads the keys. `None` if there is neither a source of keys nor a root key.
    pub(crate) async fn read(
        sources: Option<KeySources>,
        root: Option<Arc<dyn RootKey>>,
        options: KeyOptions,
    ) -> Result<Option<Self>, OpenError> {
        if sources.is_none() && root.is_none() {
            return Ok(None);
        }
        let mut given = Given { reader: sources.map(KeyReader::new), keys: None, root };
        if given.is_envelope(options) && !options.recorded {
            return Err(OpenError::UnrecordedEnvelope);
        }
        let mut process = KeyHolder::this_process(options.lease).map_err(KeyRecordError::from)?;
        if let Some(reader) = &mut given.reader {
            given.keys = reader.read(true).await?;
        }
        if let (true, Some(keys)) = (options.envelope, &given.keys) {
            process.set_roots(keys);
        }
        let keys = Arc::new(Keys::away("the database was not asked yet which key seals"));
        Ok(Some(Self { keys, given, process, options, registered: Mutex::default() }))
    }

    /// How the declared columns seal and unseal.
    pub(crate) fn strategy(&self) -> Arc<dyn Strategy> {
        let keys = Arc::clone(&self.keys);
        if self.options.reads_plain { Arc::new(Fallback::new(keys, NoEncryption)) } else { keys }
    }

    /// Puts the process on record.
    pub(crate) async fn register(&self, pool: &Pool) -> Result<(), KeyRecordError> {
        if self.options.recorded {
            let record = KeyRecord::new(pool);
            let keyring = self.given.for_values(&record, &self.process, self.options).await?;
            let standing = record.register(&self.process, &keyring, self.options.missing).await?;
            *self.registered.lock().unwrap_or_else(PoisonError::into_inner) = Some((keyring, standing));
        }
        Ok(())
    }

    /// Holds the keys from now on, in a task.
    pub(crate) fn hold(self, pool: &Pool) -> Holding {
        let Self { keys, given, process, options, registered } = self;
        let stop = CancellationToken::new();
        let told = watch::Sender::new(Told::default());
        let holding = Holding {
            keys: Arc::clone(&keys),
            told: told.subscribe(),
            stop: stop.clone(),
            task: Mutex::default(),
            rekeying: Mutex::default(),
            reads_plain: options.reads_plain,
            _guard: stop.clone().drop_guard(),
        };
        let mut work = Work {
            keys,
            record: KeyRecord::new(pool),
            process,
            options,
            given,
            keyring: None,
            has_changed: false,
            told,
            anew: Instant::now(),
        };
        match registered.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((keyring, standing)) => work.stand(keyring, standing),
            None if !options.recorded => work.put_unrecorded(),
            None => {}
        }
        let task = tokio::spawn(work.run(stop));
        *holding.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        holding
    }
}

/// The keys that a process holds, and the task that keeps them up to date. The task ends when this is dropped.
pub(crate) struct Holding {
    keys: Arc<Keys>,
    told: watch::Receiver<Told>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
    /// Re-keying in the background, until the shutdown.
    rekeying: Mutex<Option<Background>>,
    reads_plain: bool,
    _guard: DropGuard,
}

impl Holding {
    /// Re-keys the declared columns, or says that they have to be, as `at_open` wants.
    pub(crate) async fn rekey(
        &mut self,
        config: &Config,
        columns: &Columns,
        at_open: AtOpen,
    ) -> Result<(), RekeyError> {
        let mode = if self.reads_plain { Mode::Encrypt } else { Mode::Rotate };
        let keys: Arc<dyn Strategy> = self.keys.clone();
        let background = rekey::at_open(config, columns.declared(), keys, mode, at_open).await?;
        *self.rekeying.get_mut().unwrap_or_else(PoisonError::into_inner) = background;
        Ok(())
    }

    pub(crate) fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    pub(crate) fn health(&self) -> SealingHealth {
        let Told { candidate, waits_for, alarm } = self.told.borrow().clone();
        let keyring = self.keys.keyring();
        let keys = keyring.iter().flat_map(|ring| ring.keys().map(db_core::encryption::Key::id)).collect();
        SealingHealth {
            primary: self.keys.seals_under(),
            keys,
            candidate,
            waits_for,
            alarm,
            unknown: self.keys.unknown(),
            totals: self.keys.totals(),
            rekeying: self.rekeying().as_ref().map(Background::state),
        }
    }

    fn rekeying(&self) -> MutexGuard<'_, Option<Background>> {
        self.rekeying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends re-keying, and takes the process off the record. Its keys stay usable, for what still ends.
    pub(crate) async fn leave(&self) {
        let rekeying = self.rekeying().take();
        if let Some(rekeying) = rekeying
            && timeout(LEAVE_LIMIT, rekeying.stop()).await.is_err()
        {
            tracing::debug!("a batch of re-keying was cut off: its rows are re-keyed by the next process");
        }
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && timeout(LEAVE_LIMIT, task).await.is_err()
        {
            tracing::debug!(
                "this process was not taken off the record of encryption keys: its lease ends by itself"
            );
        }
    }
}

impl fmt::Debug for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.keys.fmt(f)
    }
}

struct Work {
    keys: Arc<Keys>,
    record: KeyRecord,
    process: KeyHolder,
    options: KeyOptions,
    given: Given,
    /// The keys that the process is on record with. `None` while it is not.
    keyring: Option<Keyring>,
    /// Whether what was given was not compared with the record yet, or does not fit it.
    has_changed: bool,
    told: watch::Sender<Told>,
    /// From when on a command may run again because a key is not there.
    anew: Instant,
}

/// Why the keys in use are not those that the sources or the record want.
enum Trouble {
    Source(KeySourceError),
    Record(KeyRecordError),
}

impl Work {
    async fn run(mut self, stop: CancellationToken) {
        // Opened lazily, the process is put on record at its first use of a key.
        let mut next = self.is_in_use().then(|| Instant::now() + self.options.renew);
        let mut earliest = Instant::now();
        loop {
            let due = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            let wanted = async {
                self.keys.wanted().await;
                sleep_until(earliest).await;
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = due => {}
                () = wanted => {}
            }
            // Dropped by `stop` at any await: what is under way on the record is done or undone as a whole.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.look() => {}
            }
            earliest = Instant::now() + PAUSE;
            next = Some(Instant::now() + self.options.renew);
        }
        if self.options.recorded
            && let Err(error) = self.record.leave(&self.process).await
        {
            tracing::debug!(%error, "this process was not taken off the record: its lease ends by itself");
        }
    }

    fn is_in_use(&self) -> bool {
        self.keyring.is_some() || !self.options.recorded
    }

    /// Extends the lease, reads the record and the sources, and acts on what has changed.
    async fn look(&mut self) {
        let mut alarm = None;
        if let Err(trouble) = self.compare().await {
            let text = match &trouble {
                Trouble::Source(error) => format!("the encryption keys cannot be read again: {error}"),
                Trouble::Record(error) => error.to_string(),
            };
            alarm = Some(text);
        }
        let alarm = alarm.or_else(|| self.keys.why());
        if alarm != self.told.borrow().alarm {
            if let Some(alarm) = &alarm {
                tracing::error!("{alarm}");
            } else {
                tracing::info!("the encryption keys are in order again");
            }
        }
        self.told.send_modify(|told| told.alarm = alarm);
    }

    async fn compare(&mut self) -> Result<(), Trouble> {
        let rows = match self.keyring.clone() {
            Some(keyring) => self.renew(&keyring).await?,
            None => None,
        };
        let lacks = |key: &RecordedKey| {
            let has = |keyring: &Keyring| keyring.keys().any(|own| own.id() == key.id);
            key.state != KeyState::Destroyed && !self.keyring.as_ref().is_some_and(has)
        };
        let (mut anew, mut read) = (rows.iter().flatten().any(lacks), Ok(None));
        self.has_changed |= anew && self.given.is_envelope(self.options);
        anew &= Instant::now() >= self.anew;
        if anew {
            self.anew = Instant::now() + ANEW;
        }
        if let Some(reader) = &mut self.given.reader {
            read = reader.read(anew).await;
        }
        if let Ok(Some(keys)) = &read {
            if self.options.envelope {
                self.process.set_roots(keys);
            }
            self.given.keys = Some(keys.clone());
            self.has_changed = true;
        }
        if !self.options.recorded {
            self.put_unrecorded();
        } else if self.has_changed || self.keyring.is_none() || self.told.borrow().candidate.is_some() {
            self.register().await.map_err(Trouble::Record)?;
        }
        read.map(drop).map_err(Trouble::Source)
    }

    fn put_unrecorded(&mut self) {
        if let Some(keys) = &self.given.keys {
            self.keys.put(keys.clone(), None);
        }
    }

    /// The keys on record. `None` if the lease had ended.
    async fn renew(&mut self, keyring: &Keyring) -> Result<Option<Vec<RecordedKey>>, Trouble> {
        let renewed = self.record.renew(&self.process, keyring, self.keys.seals_under()).await;
        let rows = renewed.map_err(Trouble::Record)?;
        match &rows {
            None => {
                self.keyring = None;
                tracing::warn!(
                    "the lease of the encryption keys had ended: this process is put on record again"
                );
            }
            Some(rows) => {
                let primary = rows.iter().find(|key| key.state == KeyState::Primary).map(|key| key.id);
                if primary != self.keys.seals_under() {
                    self.seal_under(keyring, primary);
                }
            }
        }
        Ok(rows)
    }

    async fn register(&mut self) -> Result<(), KeyRecordError> {
        let registered = match self.given.for_values(&self.record, &self.process, self.options).await {
            Ok(keyring) => {
                let standing = self.record.register(&self.process, &keyring, self.options.missing).await;
                standing.map(|standing| (keyring, standing))
            }
            Err(error) => Err(error),
        };
        match registered {
            Ok((keyring, standing)) => {
                self.stand(keyring, standing);
                Ok(())
            }
            // Which keys are right is not known, and those in use were.
            Err(error @ KeyRecordError::Database { .. }) => Err(error),
            Err(error) => {
                if self.keyring.is_none() {
                    self.keys.take_away(error.to_string());
                }
                Err(error)
            }
        }
    }

    /// Does as the record says.
    fn stand(&mut self, keyring: Keyring, standing: Standing) {
        let Standing { seals_under, candidate, waits_for, warnings, .. } = standing;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        self.seal_under(&keyring, seals_under);
        self.keyring = Some(keyring);
        self.has_changed = false;
        let are_others = self.told.borrow().waits_for != waits_for;
        if let (Some(candidate), true) = (candidate, are_others) {
            tracing::info!(
                %candidate,
                waits_for = waits_for.join("; "),
                "the encryption key becomes primary when these processes have it, or have ended"
            );
        }
        self.told.send_modify(|told| (told.candidate, told.waits_for) = (candidate, waits_for));
    }

    fn seal_under(&self, keyring: &Keyring, id: Option<KeyId>) {
        let before = self.keys.seals_under();
        if let Some(keyring) = id.and_then(|id| keyring.sealing_under(id)) {
            self.keys.put(keyring, None);
        } else {
            let primary = id
                .map_or_else(|| "the primary key on record".to_owned(), |id| format!("the primary key {id}"));
            let why = format!("{primary} is not among the keys of this process");
            self.keys.put(keyring.clone(), Some(why));
        }
        let now = self.keys.seals_under();
        // The first key is no news.
        if now != before && before.is_some() {
            let now = now.map_or_else(|| "no key".to_owned(), |id| id.to_string());
            tracing::info!(key_id = now, "values are sealed under another key from now on");
        }
    }
}
