//! Events and the logs they are in.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use time::OffsetDateTime;

use crate::Error;

/// The number of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId(pub i64);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An event to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    pub(crate) kind: Cow<'static, str>,
    pub(crate) data: String,
}

impl NewEvent {
    /// The most bytes of an event's type.
    pub const MAX_KIND_BYTES: usize = 64;

    /// An event of a type (1 to 64 bytes, no control characters, since it travels in a line of SSE) with data: any text
    /// without NUL, usually JSON.
    pub fn new(kind: impl Into<Cow<'static, str>>, data: impl Into<String>) -> Self {
        Self { kind: kind.into(), data: data.into() }
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

    pub(crate) fn check(&self) -> Result<(), Error> {
        if !(1..=Self::MAX_KIND_BYTES).contains(&self.kind.len()) || self.kind.chars().any(char::is_control) {
            return Err(Error::BadKind);
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
    /// Its data, as appended.
    pub data: String,
    /// When it was appended, by the database's clock.
    pub at: OffsetDateTime,
}
