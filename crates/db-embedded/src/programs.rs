//! The programs and the account that run them, for a caller that starts servers in its own way.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::account::Account;
use crate::binaries::Binaries;
use crate::error::Error;
use crate::place;
use crate::version::Version;

/// The PostgreSQL programs of this machine, and the account that may run them: for tools that start servers in their own
/// way, such as a primary and its standbys. Most callers need [`Server`](crate::Server) only.
///
/// Every method blocks.
#[derive(Clone, Debug)]
pub struct Programs {
    binaries: Binaries,
    account: Account,
}

impl Programs {
    /// Finds `postgres` and `initdb`, in `folder` if one is given, else in the places that the
    /// [crate's documentation](crate) lists.
    ///
    /// # Errors
    ///
    /// [`Error::NoBinaries`]; [`Error::NoUserName`] and [`Error::NoUnprivilegedUser`] when no account can run them.
    pub fn find(folder: Option<&Path>) -> Result<Programs, Error> {
        let account = Account::find()?;
        let binaries = Binaries::find(folder, None, &account)?;
        Ok(Programs { binaries, account })
    }

    /// The folder of the programs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.binaries.folder()
    }

    /// The version of `postgres`.
    #[must_use]
    pub fn version(&self) -> Version {
        self.binaries.version
    }

    /// The path of a program, such as `pg_rewind`: in this folder, or in the one that `postgres` is really in if the folder has
    /// a link to it.
    ///
    /// # Errors
    ///
    /// [`Error::NoProgram`] when there is no such file: packages differ in what they contain.
    pub fn path(&self, name: &'static str) -> Result<PathBuf, Error> {
        let here = self.folder().join(name);
        let there = fs::canonicalize(self.binaries.postgres()).ok().map(|path| path.with_file_name(name));
        let found = [Some(here), there].into_iter().flatten().find(|path| path.is_file());
        found.ok_or_else(|| Error::NoProgram { name, folder: self.folder().to_path_buf() })
    }

    /// A command that runs as the account: with a clean environment, in `/`, and in a process group of its own, which
    /// Ctrl-C does not reach.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        self.account.command(program)
    }

    /// The user id and group id of the account, if that is another than the user of this process: for root, since
    /// PostgreSQL refuses to run as root.
    #[must_use]
    pub fn other_account(&self) -> Option<(u32, u32)> {
        self.account.is_other().then(|| (self.account.uid(), self.account.gid()))
    }

    /// A file system in memory with `room` bytes left, in which everybody may make folders: `/dev/shm`, on Linux.
    #[must_use]
    pub fn memory_folder(&self, room: u64) -> Option<PathBuf> {
        place::memory(room)
    }

    /// The folder for temporary files, or `/tmp` or `/var/tmp` if the account cannot work in that one.
    ///
    /// # Errors
    ///
    /// [`Error::NotTraversable`] when the account can work in none of them.
    pub fn temporary_folder(&self) -> Result<PathBuf, Error> {
        place::temp_base(&self.account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_the_package_lacks_is_named_with_the_folder() {
        let programs = Programs::find(None).unwrap();

        assert_eq!(programs.path("postgres").unwrap(), programs.folder().join("postgres"));
        let missing = programs.path("pg_no_such_program").unwrap_err().to_string();
        assert!(missing.contains("`pg_no_such_program`"), "{missing}");
        assert!(missing.contains(&programs.folder().display().to_string()), "{missing}");
    }
}
