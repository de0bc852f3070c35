//! The line of the program that wants a connection.

use std::fmt;
use std::panic::Location;

/// The line of the program that wants a connection: the one that created the [`Handle`](crate::Handle). `&Pool` as an executor has no
/// call site, since a trait's method does not learn its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallSite(Option<&'static Location<'static>>);

impl CallSite {
    #[track_caller]
    pub(crate) fn caller() -> Self {
        Self(Some(Location::caller()))
    }

    pub(crate) fn unknown() -> Self {
        Self(None)
    }

    /// The line, if it is known.
    #[must_use]
    pub fn location(self) -> Option<&'static Location<'static>> {
        self.0
    }
}

/// A line with the name of its work: `src/orders.rs:17 (orders/list)`.
pub(crate) struct At(pub(crate) CallSite, pub(crate) Option<&'static str>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(at, name) = self;
        write!(f, "{at}")?;
        match name {
            // A line of the log stays one line.
            Some(name) => write!(f, " ({})", name.escape_debug()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for CallSite {
    /// `src/orders.rs:17`, or `&Pool, whose call site is unknown`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(at) => write!(f, "{}:{}", at.file(), at.line()),
            None => f.write_str("&Pool, whose call site is unknown"),
        }
    }
}
