//! The account that runs PgBouncer, which refuses to run as root.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{Uid, User};

use crate::error::Error;
use crate::server::TestServer;

/// Accounts for root in front of a given server, in order of preference. A server on this machine may let in the first without
/// a password.
const SERVICE_ACCOUNTS: [&str; 2] = ["postgres", "nobody"];

/// The environment variables that the process inherits. Others may hold secrets.
const ENVIRONMENT: [&str; 4] = ["PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ"];

/// Another user than this process's, if this process is root.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    other: Option<(u32, u32)>,
}

impl Account {
    pub(super) const OURS: Account = Account { other: None };

    pub(super) fn to_run_before(server: &TestServer) -> Result<Account, Error> {
        if !Uid::effective().is_root() {
            return Ok(Account::OURS);
        }
        let other = if let Some(server) = server.embedded() {
            // A server of the kit lets in the account that runs it.
            let data = server
                .data_dir()
                .metadata()
                .map_err(|source| Error::PgBouncer { action: "find the user of the server", source })?;
            (data.uid(), data.gid())
        } else {
            SERVICE_ACCOUNTS
                .iter()
                .find_map(|name| User::from_name(name).ok().flatten())
                .map(|user| (user.uid.as_raw(), user.gid.as_raw()))
                .ok_or(Error::NoPgBouncer {
                    tried: format!("no user {} to run it as", SERVICE_ACCOUNTS.join(" or ")),
                })?
        };
        Ok(Account { other: Some(other) })
    }

    pub(super) fn ids(self) -> Option<(u32, u32)> {
        self.other
    }

    /// A command that runs as this account, with a clean environment and in a process group of its own.
    pub(super) fn command(self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir("/").process_group(0).env_clear().stdin(Stdio::null());
        command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        if let Some((uid, gid)) = self.other {
            // `uid` also drops the supplementary groups.
            command.gid(gid).uid(uid);
        }
        command
    }

    /// Whether the account can make and remove a file in this folder. The kernel is asked, since only it knows all rules.
    pub(super) fn can_work_in(self, folder: &Path) -> bool {
        let mut test = self.command("/bin/sh");
        test.args(["-c", "[ -d \"$0\" ] && [ -w \"$0\" ] && [ -x \"$0\" ]"]).arg(folder);
        test.status().is_ok_and(|status| status.success())
    }
}
