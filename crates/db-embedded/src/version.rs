//! The version of a set of server programs.

use std::fmt;

/// A version of PostgreSQL. Only versions of the same major number can read each other's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Such as 15.
    pub major: u32,
    /// Such as 18; 0 for a development or beta version.
    pub minor: u32,
}

impl Version {
    /// The oldest version whose `postmaster.pid` says when the server is ready.
    pub(crate) const OLDEST: u32 = 10;

    /// Reads `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, `17beta2` or `15.18`.
    pub(crate) fn parse(text: &str) -> Option<Version> {
        let number = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let mut parts = number.splitn(3, '.');
        Some(Version {
            major: leading_number(parts.next()?)?,
            minor: parts.next().and_then(leading_number).unwrap_or(0),
        })
    }
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn every_form_in_the_wild_is_read() {
        for (text, major, minor) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", 15, 18),
            ("postgres (PostgreSQL) 17beta2\n", 17, 0),
            ("9.6.24", 9, 6),
            ("16.14", 16, 14),
        ] {
            assert_eq!(Version::parse(text), Some(Version { major, minor }), "{text}");
        }
        assert_eq!(Version::parse("no number"), None);
    }
}
