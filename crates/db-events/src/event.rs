//! Events.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{Error, Mark};

/// An event to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    pub(crate) kind: Cow<'static, str>,
    pub(crate) data: String,
    pub(crate) version: i16,
}

impl NewEvent {
    /// The most bytes of an event's kind.
    pub const MAX_KIND_BYTES: usize = 64;

    /// Kinds that no event can have. A client of a stream of server-sent events would take such an event for the end of the stream
    /// (`stream-end`), or for an event of its own connection (`error` and `open` of a browser's `EventSource`).
    pub const RESERVED_KINDS: [&str; 3] = ["error", "open", "stream-end"];

    /// An event of a kind, with data: any text without NUL, usually JSON. The kind has 1 to 64 bytes and no control characters,
    /// since server-sent events need it on one line, and must not be one of [`RESERVED_KINDS`](Self::RESERVED_KINDS).
    pub fn new(kind: impl Into<Cow<'static, str>>, data: impl Into<String>) -> Self {
        Self { kind: kind.into(), data: data.into(), version: 1 }
    }

    /// An event of a kind, with data in JSON.
    ///
    /// # Errors
    ///
    /// If `data` cannot be written as JSON, such as a map whose keys are not strings.
    pub fn json(
        kind: impl Into<Cow<'static, str>>,
        data: &(impl Serialize + ?Sized),
    ) -> Result<Self, serde_json::Error> {
        Ok(Self::new(kind, serde_json::to_string(data)?))
    }

    /// Sets the version of the kind's data (default 1), by which readers tell old events from new ones.
    #[must_use]
    pub fn version(self, version: i16) -> Self {
        Self { version, ..self }
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Its data.
    #[must_use]
    pub fn data(&self) -> &str {
        &self.data
    }

    /// The bytes of its text.
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
    /// Its number in the log: 1, 2, 3, … without holes.
    pub id: i64,
    /// Its kind.
    pub kind: Arc<str>,
    /// The version of the kind's data.
    pub version: i16,
    /// Its data, as appended.
    pub data: String,
    /// When it was appended, by the database's clock: the start of the transaction that has appended it.
    pub at: OffsetDateTime,
    /// The mark of its batch. Keep it beside the id to [resume](crate::EventLogs::resume) after this event.
    pub mark: Mark,
}

impl Event {
    /// Reads the data as JSON.
    ///
    /// # Errors
    ///
    /// If the data is not JSON, or not JSON of a `T`.
    pub fn json<'e, T: Deserialize<'e>>(&'e self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.data)
    }
}
