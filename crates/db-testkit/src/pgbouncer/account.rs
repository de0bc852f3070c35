//! Who PgBouncer runs as: it refuses to run as root.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{Uid, User};

use crate::error::Error;
use crate::server::TestServer;

/// Accounts to drop to as root before a server that is not ours, in this order. A server on this machine may well let in
/// the first of them without a password.
const SERVICE_ACCOUNTS: [&str; 2] = ["postgres", "nobody"];

/// What reaches its processes of our environment. The rest may hold secrets.
const ENVIRONMENT: [&str; 4] = ["PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ"];

/// Somebody else than we are, if we are root.
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
            // A server of the kit's lets in its own account.
            let data = server
                .data_dir()
                .metadata()
                .map_err(|source| Error::PgBouncer { action: "see whom the server runs as", source })?;
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

    /// A command that runs as this account, with a clean environment, and outside of our terminal's process group.
    pub(super) fn command(self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir("/").process_group(0).env_clear().stdin(Stdio::null());
        command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        if let Some((uid, gid)) = self.other {
            // `uid` also gives up our supplementary groups.
            command.gid(gid).uid(uid);
        }
        command
    }

    /// Whether it can make something in this folder, and remove it again. The kernel is asked, which knows best.
    pub(super) fn can_work_in(self, folder: &Path) -> bool {
        let mut test = self.command("/bin/sh");
        test.args(["-c", "[ -d \"$0\" ] && [ -w \"$0\" ] && [ -x \"$0\" ]"]).arg(folder);
        test.status().is_ok_and(|status| status.success())
    }
}
