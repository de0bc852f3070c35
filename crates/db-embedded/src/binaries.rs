//! Finds the server programs on this machine.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::account::Account;
use crate::error::Error;
use crate::search::{Place, Search};
use crate::version::Version;

/// The environment variable that names the only folder to search.
const VARIABLE: &str = "DB_EMBEDDED_PGBIN";

/// Where packages install the programs, with the version in place of the star: Debian and Ubuntu, PostgreSQL's own packages for
/// Red Hat, Alpine, and Homebrew's two places.
const VERSIONED: [(&str, &str, &str); 5] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/usr/libexec", "postgresql", ""),
    ("/opt/homebrew/opt", "postgresql@", "bin"),
    ("/usr/local/opt", "postgresql@", "bin"),
];

/// Where PostgreSQL installs itself when it is built from source.
const FROM_SOURCE: &str = "/usr/local/pgsql/bin";

/// A folder with `postgres` and `initdb` of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binaries {
    folder: PathBuf,
    pub(crate) version: Version,
}

impl Binaries {
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn postgres(&self) -> PathBuf {
        self.folder.join("postgres")
    }

    pub(crate) fn initdb(&self) -> PathBuf {
        self.folder.join("initdb")
    }

    /// The first programs found or, for existing data, the first that can read it.
    ///
    /// If `explicit` or the environment variable names a folder, only that folder is searched.
    pub(crate) fn find(
        explicit: Option<&Path>,
        data: Option<(&Path, &str)>,
        account: &Account,
    ) -> Result<Binaries, Error> {
        let named = explicit
            .map(Path::to_path_buf)
            .or_else(|| env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from));
        let places = named.map_or_else(usual_places, |folder| vec![folder]);
        let mut search = Search { places: Vec::new() };
        let mut other_majors = Vec::new();
        for folder in places {
            if search.places.iter().any(|place| place.folder == folder) {
                continue;
            }
            let found = inspect(&folder, account);
            if let Ok(version) = found {
                if data.is_none_or(|(_, made_by)| version.major.to_string() == made_by) {
                    return Ok(Binaries { folder, version });
                }
                if !other_majors.contains(&version) {
                    other_majors.push(version);
                }
            }
            search.places.push(Place { folder, found });
        }
        match data {
            Some((folder, made_by)) if !other_majors.is_empty() => Err(Error::WrongMajor {
                folder: folder.to_path_buf(),
                made_by: made_by.to_owned(),
                found: other_majors,
            }),
            _ => Err(Error::NoBinaries { search }),
        }
    }
}

fn usual_places() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> =
        env::split_paths(&path).filter(|folder| folder.join("postgres").exists()).collect();
    if let Some(output) =
        Command::new("pg_config").arg("--bindir").output().ok().filter(|it| it.status.success())
    {
        places.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    for (parent, prefix, suffix) in VERSIONED {
        let mut versions: Vec<(Version, PathBuf)> = fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let version = Version::parse(name.to_str()?.strip_prefix(prefix)?)?;
                Some((version, entry.path().join(suffix)))
            })
            .collect();
        versions.sort();
        places.extend(versions.into_iter().rev().map(|(_, folder)| folder));
    }
    places.push(PathBuf::from(FROM_SOURCE));
    places
}

/// Runs the program to learn its version: a folder may hold scripts, or programs for another machine.
fn inspect(folder: &Path, account: &Account) -> Result<Version, String> {
    for program in ["postgres", "initdb"] {
        if !folder.join(program).is_file() {
            return Err(format!("no {program}"));
        }
    }
    let program = fs::canonicalize(folder.join("postgres")).map_err(|error| error.to_string())?;
    if let Some(barrier) = account.barrier(&program) {
        return Err(format!("{} cannot be entered by the user {}", barrier.display(), account.name()));
    }
    let output = Command::new(&program).arg("--version").output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    match Version::parse(&text) {
        Some(version) if version.major >= Version::OLDEST => Ok(version),
        Some(version) => {
            Err(format!("version {version} is older than {}, the oldest supported", Version::OLDEST))
        }
        None => Err(format!("`postgres --version` says {:?} and ends with {}", text.trim(), output.status)),
    }
}
