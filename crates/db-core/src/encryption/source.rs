//! Where keys come from, and reading them again while the program runs.

mod command;
mod folder;
mod text;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::{EncryptionError, Key, Keyring};

/// How long the result of a command counts, unless a key is looked for that is not there.
const COMMAND_EVERY: Duration = Duration::from_mins(5);

/// A place that keys are read from.
///
/// A file or a command gives one key: 16 or 32 bytes, as hexadecimal digits, as base64, or as they are. White space around the two
/// texts does not count.
#[derive(Clone)]
#[non_exhaustive]
pub enum KeySource {
    /// The key itself.
    Value(Key),
    /// A file.
    File(PathBuf),
    /// A folder with one key a file, whose name says nothing of the key. If it has several, the file `primary` contains the name of
    /// the one that seals. Hidden files do not count: mounted secrets of Kubernetes have some.
    Folder(PathBuf),
    /// A program and its arguments, in the words of a shell but without a shell: `age -d -i id key.age`. It has 10 s to print the
    /// key.
    Command(String),
}

/// Where a program's keys come from: that of the key to seal under, and those of older ones.
#[derive(Clone, Debug)]
pub struct KeySources {
    primary: KeySource,
    old: Vec<KeySource>,
}

impl KeySources {
    /// Keys from one source.
    #[must_use]
    pub fn new(primary: KeySource) -> Self {
        Self { primary, old: Vec::new() }
    }

    /// Adds a source of older keys, which only unseal.
    #[must_use]
    pub fn with_old(mut self, source: KeySource) -> Self {
        self.old.push(source);
        self
    }

    fn all(&self) -> impl Iterator<Item = &KeySource> {
        std::iter::once(&self.primary).chain(&self.old)
    }
}

impl From<Key> for KeySources {
    fn from(key: Key) -> Self {
        Self::new(KeySource::Value(key))
    }
}

impl From<Keyring> for KeySources {
    fn from(keyring: Keyring) -> Self {
        let mut keys = keyring.keys().cloned().map(KeySource::Value);
        let primary = keys.next().expect("a keyring has a primary key");
        Self { primary, old: keys.collect() }
    }
}

/// Shows the kind, the path, the program without its arguments, and of a key its id.
impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(key) => write!(f, "the key {}", key.id()),
            Self::File(path) => write!(f, "the key file {}", path.display()),
            Self::Folder(path) => write!(f, "the key folder {}", path.display()),
            Self::Command(line) => {
                let program = line.split_whitespace().next().unwrap_or_default();
                write!(f, "the key command `{program}`")
            }
        }
    }
}

/// Keys could not be read from a source. Contains nothing of what was read.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeySourceError {
    /// A file or a folder could not be read, or a command not run.
    #[error("{source_of_keys}: {problem}")]
    Unreadable {
        /// The source.
        source_of_keys: String,
        /// What the system said, or what is wrong.
        problem: String,
    },
    /// What was read is no key.
    #[error("{source_of_keys}: {problem}")]
    NoKey {
        /// The source.
        source_of_keys: String,
        /// Why it is no key.
        problem: String,
    },
    /// The keys do not go together.
    #[error("the encryption keys cannot be used together: {0}")]
    Together(String),
}

impl KeySourceError {
    fn unreadable(source: &KeySource, problem: impl fmt::Display) -> Self {
        Self::Unreadable { source_of_keys: source.to_string(), problem: problem.to_string() }
    }

    fn no_key(source: &KeySource, problem: impl fmt::Display) -> Self {
        Self::NoKey { source_of_keys: source.to_string(), problem: problem.to_string() }
    }
}

/// A key as a source gives it.
#[derive(Clone, PartialEq, Eq)]
struct Text {
    /// The file's name in its folder.
    name: Option<String>,
    content: Zeroizing<Vec<u8>>,
}

/// What a source gave, the key that seals first, and when.
type Given = (Vec<Text>, Instant);

/// Reads a program's keys, again and again.
pub struct KeyReader {
    sources: KeySources,
    /// What each source gave. Empty before the first reading.
    read: Vec<Given>,
}

impl KeyReader {
    /// A reader that has read nothing.
    #[must_use]
    pub fn new(sources: KeySources) -> Self {
        Self { sources, read: Vec::new() }
    }

    /// Reads all sources. `None` when they give what they gave before. A command is run again after five minutes, or if `anew`.
    ///
    /// Cancel-safe: a reading that is dropped is as if it never began. A command that it runs is ended.
    ///
    /// # Errors
    ///
    /// [`KeySourceError`]. What was read before still counts, and the next call reads again.
    pub async fn read(&mut self, anew: bool) -> Result<Option<Keyring>, KeySourceError> {
        let mut read = Vec::new();
        for (nth, source) in self.sources.all().enumerate() {
            let before = self.read.get(nth);
            let still_counts = before.filter(|(_, at)| !anew && at.elapsed() < COMMAND_EVERY);
            read.push(match (source, still_counts) {
                (KeySource::Command(_) | KeySource::Value(_), Some(before)) => before.clone(),
                _ => (texts(source).await?, Instant::now()),
            });
        }
        let is_same = read.len() == self.read.len()
            && read.iter().zip(&self.read).all(|((new, _), (before, _))| new == before);
        if is_same {
            self.read = read;
            return Ok(None);
        }
        let keyring = self.keyring(&read)?;
        for source in self.sources.all() {
            if let Some(warning) = text::too_open(source).await {
                tracing::warn!("{warning}");
            }
        }
        self.read = read;
        Ok(Some(keyring))
    }

    fn keyring(&self, read: &[Given]) -> Result<Keyring, KeySourceError> {
        let mut keys = Vec::new();
        for (source, (texts, _)) in self.sources.all().zip(read) {
            match source {
                KeySource::Value(key) => keys.push(key.clone()),
                source => {
                    for text in texts {
                        keys.push(text::key(&text.content).map_err(|problem| {
                            let name = text.name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
                            KeySourceError::no_key(source, format_args!("{name}{problem}"))
                        })?);
                    }
                }
            }
        }
        let (primary, old) = keys.split_first().expect("each source gives a key");
        old.iter()
            .try_fold(Keyring::new(primary), Keyring::with_retired)
            .map_err(|error: EncryptionError| KeySourceError::Together(error.to_string()))
    }
}

impl fmt::Debug for KeyReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyReader").field(&self.sources).finish()
    }
}

async fn texts(source: &KeySource) -> Result<Vec<Text>, KeySourceError> {
    let one = |content| vec![Text { name: None, content }];
    let read = match source {
        KeySource::Value(_) => Ok(Vec::new()),
        KeySource::File(path) => text::file(path).await.map(one).map_err(|error| error.to_string()),
        KeySource::Folder(path) => folder::texts(path).await,
        KeySource::Command(line) => command::run(line).await.map(one),
    };
    read.map_err(|problem| KeySourceError::unreadable(source, problem))
}
