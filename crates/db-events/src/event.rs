//! Events and the logs they are in.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{Error, Mark};

/// The number of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId(pub i64);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Somebody who appends, and may have to send a batch again: any number that nobody else has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WriterId(pub i64);

impl WriterId {
    /// A random one, of the operating system's randomness: a generator that two processes seed alike would make one writer of
    /// two. A writer that has to send a batch again after a restart keeps its number.
    ///
    /// # Panics
    ///
    /// When the operating system has no randomness.
    #[must_use]
    pub fn random() -> Self {
        let number = getrandom::u64().expect("the operating system gives random numbers");
        Self(number.cast_signed())
    }
}

/// An event to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    pub(crate) kind: Cow<'static, str>,
    pub(crate) data: String,
    pub(crate) version: i16,
}

impl NewEvent {
    /// The most bytes of an event's type.
    pub const MAX_KIND_BYTES: usize = 64;

    /// Types that no event can have: a client of a stream of server-sent events would take it for the end of the stream
    /// (`stream-end`), or for what a browser's `EventSource` says of its connection (`error`, `open`).
    pub const RESERVED_KINDS: [&str; 3] = ["error", "open", "stream-end"];

    /// An event of a type (1 to 64 bytes, no control characters, since it travels in a line of SSE, and none of
    /// [`RESERVED_KINDS`](Self::RESERVED_KINDS)) with data: any text without NUL, usually JSON.
    pub fn new(kind: impl Into<Cow<'static, str>>, data: impl Into<String>) -> Self {
        Self { kind: kind.into(), data: data.into(), version: 1 }
    }

    /// The same with data in JSON.
    ///
    /// # Errors
    ///
    /// What does not go into JSON, such as a map whose keys are no texts.
    pub fn json(
        kind: impl Into<Cow<'static, str>>,
        data: &(impl Serialize + ?Sized),
    ) -> Result<Self, serde_json::Error> {
        Ok(Self::new(kind, serde_json::to_string(data)?))
    }

    /// Says which version of its type the data is, 1 unless it is said, so that readers can tell old events from new ones.
    #[must_use]
    pub fn version(self, version: i16) -> Self {
        Self { version, ..self }
    }

    /// Its type.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Its data.
    #[must_use]
    pub fn data(&self) -> &str {
        &self.data
    }

    /// How much text it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.kind.len() + self.data.len()
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if !(1..=Self::MAX_KIND_BYTES).contains(&self.kind.len()) || self.kind.chars().any(char::is_control) {
            return Err(Error::BadKind);
        }
        if let Some(kind) = Self::RESERVED_KINDS.into_iter().find(|reserved| *reserved == self.kind) {
            return Err(Error::ReservedKind(kind));
        }
        if self.data.as_bytes().contains(&0) {
            return Err(Error::Nul);
        }
        Ok(())
    }
}

/// An event as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its number in the log, from 1 without holes.
    pub id: i64,
    /// Its type.
    pub kind: Arc<str>,
    /// The version of its type, 1 unless the writer has said otherwise.
    pub version: i16,
    /// Its data, as appended.
    pub data: String,
    /// When it was appended, by the database's clock.
    pub at: OffsetDateTime,
    /// The mark of its batch: keep it beside the number to resume after this event.
    pub mark: Mark,
}

impl Event {
    /// The data, read as JSON.
    ///
    /// # Errors
    ///
    /// Data that is not such JSON.
    pub fn json<'e, T: Deserialize<'e>>(&'e self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.data)
    }
}
