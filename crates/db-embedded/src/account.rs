//! The account that runs the server, and the one that may connect to it.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Uid, User};

use crate::Error;

/// Accounts for the server when this process is root, in order of preference: PostgreSQL refuses to run as root.
const SERVICE_ACCOUNTS: [&str; 2] = ["postgres", "nobody"];

/// The environment variables that the server inherits. Others may hold secrets, or change what the server does (`PGPORT`,
/// `LC_ALL`).
const ENVIRONMENT: [&str; 4] = ["PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ"];

/// The account that owns the data and runs the server, and the user that may connect.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    uid: u32,
    gid: u32,
    name: String,
    /// The effective user of this process, as the server sees it at the other end of the socket.
    client: String,
    client_uid: u32,
}

impl Account {
    /// The user of this process or, for root, an unprivileged account.
    pub(crate) fn find() -> Result<Account, Error> {
        let uid = Uid::effective();
        let us = look_up(User::from_uid(uid))
            .filter(|user| !user.name.starts_with('/') && !user.name.contains(char::is_control))
            .ok_or(Error::NoUserName { uid: uid.as_raw() })?;
        let (client, client_uid) = (us.name.clone(), uid.as_raw());
        let user = if uid.is_root() {
            SERVICE_ACCOUNTS
                .iter()
                .find_map(|name| look_up(User::from_name(name)))
                .ok_or(Error::NoUnprivilegedUser { tried: &SERVICE_ACCOUNTS })?
        } else {
            us
        };
        Ok(Account { uid: user.uid.as_raw(), gid: user.gid.as_raw(), name: user.name, client, client_uid })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The operating system's name of the user that may connect.
    pub(crate) fn client(&self) -> &str {
        &self.client
    }

    pub(crate) fn client_uid(&self) -> u32 {
        self.client_uid
    }

    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    pub(crate) fn gid(&self) -> u32 {
        self.gid
    }

    /// Whether the server runs as another user than this process, which only root can arrange.
    pub(crate) fn is_other(&self) -> bool {
        self.uid != self.client_uid
    }

    /// A command that runs as this account, with a clean environment and in a process group of its own.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir("/").process_group(0).env_clear();
        command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        if self.is_other() {
            // `uid` also drops the supplementary groups.
            command.gid(self.gid).uid(self.uid);
        }
        command
    }

    /// Whether the account has these permissions (of `rwx`, as in `0o5`) on a folder or file, going by its mode.
    pub(crate) fn may(&self, wanted: u32, at: &std::fs::Metadata) -> bool {
        let shift = if at.uid() == self.uid {
            6
        } else if at.gid() == self.gid {
            3
        } else {
            0
        };
        (at.mode() >> shift) & wanted == wanted
    }

    /// The topmost folder on the way to `path`, `path` included, that the account cannot pass through.
    ///
    /// `None` if the server runs as the same user as this process: then the kernel's own errors are more exact.
    pub(crate) fn barrier(&self, path: &Path) -> Option<PathBuf> {
        if !self.is_other() {
            return None;
        }
        let mut way: Vec<&Path> = path.ancestors().collect();
        way.reverse();
        way.into_iter()
            .find(|folder| folder.metadata().is_ok_and(|metadata| !self.may(0o1, &metadata)))
            .map(Path::to_path_buf)
    }
}

/// An error of the user database counts as an unknown user.
fn look_up(found: nix::Result<Option<User>>) -> Option<User> {
    found.ok().flatten()
}
