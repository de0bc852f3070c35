//! The search for server programs, as an error shows it.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::version::Version;

/// The folders that were searched for the server programs, and what was wrong with each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    pub(crate) places: Vec<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) folder: PathBuf,
    pub(crate) found: Result<Version, String>,
}

impl Search {
    /// The folders that were searched, in order.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.places.iter().map(|place| place.folder.as_path())
    }
}

impl fmt::Display for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, place) in self.places.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { ", " })?;
            match &place.found {
                Ok(version) => write!(f, "{} ({version})", place.folder.display())?,
                Err(why) => write!(f, "{} ({why})", place.folder.display())?,
            }
        }
        Ok(())
    }
}

/// `15.18 was` or `16.4 and 17.2 were`.
pub(crate) struct Versions<'a>(pub(crate) &'a [Version]);

impl fmt::Display for Versions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(Version::to_string).collect();
        write!(f, "{} {}", names.join(" and "), if names.len() == 1 { "was" } else { "were" })
    }
}
