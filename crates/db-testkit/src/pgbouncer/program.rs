//! Finds the program on this machine.

use std::env;
use std::io;
use std::path::{Path, PathBuf};

use super::account::Account;
use crate::error::Error;

/// The environment variable that names the only program to use.
const VARIABLE: &str = "DB_TESTKIT_PGBOUNCER";

/// Debian's folder for it, which is on root's `PATH` only.
const BESIDES: &str = "/usr/sbin";

/// A program, with its version.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) version: (u32, u32, u32),
    /// The account cannot reach the program's folder, such as root's home.
    pub(super) is_out_of_reach: bool,
}

impl Program {
    /// Finds the program. If `explicit` or the environment names one, no other is tried.
    pub(super) fn find(explicit: Option<&Path>, account: &Account) -> Result<Program, Error> {
        let named = explicit
            .map(Path::to_path_buf)
            .or_else(|| env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from));
        let places = if let Some(path) = named {
            vec![path]
        } else {
            let path = env::var_os("PATH").unwrap_or_default();
            let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
            folders.push(BESIDES.into());
            let programs = folders.into_iter().map(|folder| folder.join("pgbouncer"));
            programs.filter(|program| program.exists()).collect()
        };
        let mut tried = Vec::new();
        for place in places {
            match Program::ask(&place, *account) {
                Ok(program) => return Ok(program),
                Err(why) => tried.push(format!("{} ({why})", place.display())),
            }
        }
        if tried.is_empty() {
            tried.push(format!("none on PATH or in {BESIDES}"));
        }
        Err(Error::NoPgBouncer { tried: tried.join(", ") })
    }

    fn ask(place: &Path, account: Account) -> Result<Program, String> {
        let path = place.canonicalize().map_err(|error| error.to_string())?;
        let asked = account.command(&path).arg("--version").output();
        let (output, is_out_of_reach) = match asked {
            // The account cannot run it, but this process may; the version is the same.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && account.ids().is_some() => {
                let ours = std::process::Command::new(&path).arg("--version").output();
                (ours.map_err(|error| error.to_string())?, true)
            }
            asked => (asked.map_err(|error| error.to_string())?, false),
        };
        let said = String::from_utf8_lossy(&output.stdout);
        if let Some(version) = parse(&said) {
            return Ok(Program { path, version, is_out_of_reach });
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        let line = said.lines().chain(errors.lines()).next().unwrap_or("nothing");
        Err(format!("`--version` prints {line:?} and exits with {}", output.status))
    }
}

/// Reads `PgBouncer 1.24.1` and `PgBouncer version 1.9rc1`.
fn parse(text: &str) -> Option<(u32, u32, u32)> {
    let rest = text.lines().next()?.strip_prefix("PgBouncer ")?;
    let mut parts = rest.trim_start_matches("version ").splitn(3, '.').map(|part| {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..end].parse().ok()
    });
    Some((parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn every_form_in_the_wild_is_read() {
        assert_eq!(parse("PgBouncer 1.24.1\nlibevent 2.1.12-stable\n"), Some((1, 24, 1)));
        assert_eq!(parse("PgBouncer version 1.9rc1"), Some((1, 9, 0)));
        assert_eq!(parse("psql (PostgreSQL) 15.18"), None);
    }
}
