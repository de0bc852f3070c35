//! Names of PostgreSQL's channels.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// A channel of PostgreSQL's own: 1 to 63 bytes of UTF-8 without NUL, case kept. Cheap to clone.
///
/// `LISTEN` silently cuts a longer name, and `pg_notify` refuses it, so that the two never meet; `LISTEN orders` and `LISTEN
/// "Orders"` are two channels. Here a name is checked once, and always quoted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Channel(Arc<str>);

impl Channel {
    /// The most bytes that a channel's name may have (`NAMEDATALEN - 1`, manual, chapter 4.1.1).
    pub const MAX_BYTES: usize = 63;

    /// Checks a name.
    ///
    /// # Errors
    ///
    /// [`ChannelError`] when it is empty, too long, or contains a NUL.
    pub fn new(name: impl AsRef<str>) -> Result<Self, ChannelError> {
        let name = name.as_ref();
        match name.len() {
            0 => Err(ChannelError::Empty),
            1..=Self::MAX_BYTES if name.contains('\0') => Err(ChannelError::Nul),
            1..=Self::MAX_BYTES => Ok(Self(name.into())),
            bytes => Err(ChannelError::TooLong { bytes }),
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for Channel {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Why a text is not a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// It is empty.
    #[error("a channel's name must not be empty")]
    Empty,
    /// It is too long.
    #[error("a channel's name has at most 63 bytes, this one has {bytes}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It contains a NUL.
    #[error("a channel's name must not contain a NUL character")]
    Nul,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_1_to_63_bytes_and_no_nul() {
        for good in ["a", "Straße 'x\"; $$ 🦀\n", &"x".repeat(63)] {
            assert_eq!(Channel::new(good).map(|channel| channel.to_string()), Ok(good.to_owned()));
        }
        assert_eq!(Channel::new(""), Err(ChannelError::Empty));
        assert_eq!(Channel::new("a\0b"), Err(ChannelError::Nul));
        assert_eq!(Channel::new("ü".repeat(32)), Err(ChannelError::TooLong { bytes: 64 }));
    }
}
