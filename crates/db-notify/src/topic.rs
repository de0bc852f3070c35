//! Names that notifications are sorted by.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// A topic: 1 to 255 bytes of UTF-8 without NUL, case kept. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

impl Topic {
    /// The most bytes that a topic may have.
    pub const MAX_BYTES: usize = 255;

    /// Checks a name.
    ///
    /// # Errors
    ///
    /// [`TopicError`] when it is empty, too long, or contains a NUL, which PostgreSQL's text cannot hold.
    pub fn new(name: impl AsRef<str>) -> Result<Self, TopicError> {
        let name = name.as_ref();
        match name.len() {
            0 => Err(TopicError::Empty),
            1..=Self::MAX_BYTES if name.contains('\0') => Err(TopicError::Nul),
            1..=Self::MAX_BYTES => Ok(Self(name.into())),
            bytes => Err(TopicError::TooLong { bytes }),
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Why a text is not a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    /// It is empty.
    #[error("a topic must not be empty")]
    Empty,
    /// It is too long.
    #[error("a topic has at most 255 bytes, this one has {bytes}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It contains a NUL.
    #[error("a topic must not contain a NUL character")]
    Nul,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_has_1_to_255_bytes_and_no_nul() {
        for good in ["a", "Straße 'x\"; $$ 🦀\n", &"x".repeat(255)] {
            assert_eq!(Topic::new(good).map(|topic| topic.to_string()), Ok(good.to_owned()));
        }
        assert_eq!(Topic::new(""), Err(TopicError::Empty));
        assert_eq!(Topic::new("a\0b"), Err(TopicError::Nul));
        assert_eq!(Topic::new("ü".repeat(128)), Err(TopicError::TooLong { bytes: 256 }));
        assert_ne!(Topic::new("Orders"), Topic::new("orders"), "case is kept");
    }
}
