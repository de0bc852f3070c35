//! The two kinds of names of a bus: topics, and PostgreSQL's channels.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use crate::error::NameError;

fn check(name: &str, kind: &'static str, limit: usize) -> Result<Arc<str>, NameError> {
    match name.len() {
        0 => Err(NameError::Empty { kind, limit }),
        bytes if bytes > limit => Err(NameError::TooLong { kind, bytes, limit }),
        _ if name.contains('\0') => Err(NameError::Nul { kind }),
        _ => Ok(name.into()),
    }
}

/// A type for names of one kind, which cannot hold an unchecked name.
macro_rules! name {
    ($(#[$doc:meta])* $vis:vis struct $Name:ident { kind: $kind:literal, limit: $limit:literal }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        $vis struct $Name(Arc<str>);

        impl $Name {
            /// The longest name, in bytes.
            pub const MAX_BYTES: usize = $limit;

            /// Checks a name.
            ///
            /// # Errors
            ///
            /// [`NameError`] when the name is empty, longer than [`Self::MAX_BYTES`], or contains a NUL character.
            pub fn new(name: impl AsRef<str>) -> Result<Self, NameError> {
                check(name.as_ref(), $kind, Self::MAX_BYTES).map(Self)
            }

            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Borrow<str> for $Name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name! {
    /// A topic of a bus: 1 to 255 bytes of UTF-8 without NUL, case-sensitive. Cheap to clone.
    pub struct Topic { kind: "topic", limit: 255 }
}

name! {
    /// A channel of PostgreSQL: 1 to 63 bytes of UTF-8 without NUL, case-sensitive (`NAMEDATALEN - 1`, manual, chapter 4.1.1).
    /// Cheap to clone.
    ///
    /// PostgreSQL has two traps. `LISTEN` silently cuts a longer name and `pg_notify` refuses it, so the two never meet. `LISTEN
    /// Orders` listens to `orders`. This type checks the length once, and the bus always quotes the name.
    pub struct Channel { kind: "channel", limit: 63 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_has_1_to_255_bytes_and_no_nul() {
        for good in ["a", "Straße 'x\"; $$ 🦀\n", &"x".repeat(255)] {
            assert_eq!(Topic::new(good).map(|topic| topic.to_string()), Ok(good.to_owned()));
        }
        assert_eq!(Topic::new(""), Err(NameError::Empty { kind: "topic", limit: 255 }));
        assert_eq!(Topic::new("a\0b"), Err(NameError::Nul { kind: "topic" }));
        let too_long = NameError::TooLong { kind: "topic", bytes: 256, limit: 255 };
        assert_eq!(Topic::new("ü".repeat(128)), Err(too_long));
        assert_ne!(Topic::new("Orders"), Topic::new("orders"), "names are case-sensitive");
    }

    #[test]
    fn a_channel_has_1_to_63_bytes_and_no_nul() {
        for good in ["a", "Straße 'x\"; $$ 🦀\n", &"x".repeat(63)] {
            assert_eq!(Channel::new(good).map(|channel| channel.to_string()), Ok(good.to_owned()));
        }
        assert_eq!(Channel::new(""), Err(NameError::Empty { kind: "channel", limit: 63 }));
        assert_eq!(Channel::new("a\0b"), Err(NameError::Nul { kind: "channel" }));
        let too_long = NameError::TooLong { kind: "channel", bytes: 64, limit: 63 };
        assert_eq!(Channel::new("ü".repeat(32)), Err(too_long));
    }
}
