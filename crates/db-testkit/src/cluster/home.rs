//! The folder of a cluster.
//!
//! ```text
//! HOME/run/           the sockets
//! HOME/N/data/        PGDATA of member N, whose postgresql.conf includes ../member.conf
//! HOME/N/member.conf  the settings of member N
//! HOME/N/log
//! ```
//!
//! For root, the sockets and the data belong to the account that PostgreSQL runs as; the rest is root's, so that the account
//! cannot exchange a file that root writes for a link.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use db_embedded::Programs;

use super::archive;
use super::programs::{Job, failed};
use crate::error::Error;
use crate::guard::{self, Guard};

/// What the names of all folders begin with.
const PREFIX: &str = "db-testkit-cluster-";

/// The shortest `sun_path` of all systems, without its terminating zero, and the length of what comes after the base.
const PATH_LIMIT: usize = 103;
const NAME_LENGTH: usize = "/db-testkit-cluster-0123456789/run/.s.PGSQL.65535".len();

/// Bytes. Each member has about a thousand files: on a disk they take seconds to make when as many were removed shortly before, since
/// ext4 avoids the inodes of those.
const ROOM: u64 = 1 << 30;

/// Processes that outlive this value are ended, and the folder is removed, by the guard.
#[derive(Debug)]
pub(super) struct Home {
    temporary: PathBuf,
    guard: Guard,
    account: Option<(u32, u32)>,
}

impl Home {
    pub(super) fn make(programs: &Programs, wanted: Option<PathBuf>) -> Result<Home, Error> {
        let temporary = programs.temporary_folder().map_err(Error::Server)?;
        let short = temporary.as_os_str().len() + NAME_LENGTH <= PATH_LIMIT;
        let on_disk = || if short { temporary.clone() } else { "/tmp".into() };
        let base = wanted.or_else(|| programs.memory_folder(ROOM)).unwrap_or_else(on_disk);
        let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(10).collect();
        let guard =
            Guard::over(base.join(format!("{PREFIX}{random}")), "QUIT").map_err(failed("make its folder"))?;
        let home = Home { temporary, guard, account: programs.other_account() };
        if let Some((_, group)) = home.account {
            let path = home.folder();
            let opened = chown(path, None, Some(group))
                .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o710)));
            opened.map_err(failed("let the servers' account into its folder"))?;
        }
        home.make_for_account(&home.sockets())?;
        Ok(home)
    }

    /// The folder for temporary files, which are more than this cluster's.
    pub(super) fn temporary(&self) -> &Path {
        &self.temporary
    }

    pub(super) fn folder(&self) -> &Path {
        self.guard.folder()
    }

    pub(super) fn sockets(&self) -> PathBuf {
        self.folder().join("run")
    }

    pub(super) fn data(&self, member: usize) -> PathBuf {
        self.of(member).join("data")
    }

    pub(super) fn settings(&self, member: usize) -> PathBuf {
        self.of(member).join("member.conf")
    }

    pub(super) fn log(&self, member: usize) -> PathBuf {
        self.of(member).join("log")
    }

    /// Of programs other than the server.
    pub(super) fn job_log(&self, member: usize) -> PathBuf {
        self.of(member).join("job.log")
    }

    fn of(&self, member: usize) -> PathBuf {
        self.folder().join(member.to_string())
    }

    /// Makes a folder that only the account can enter.
    pub(super) fn make_for_account(&self, path: &Path) -> Result<(), Error> {
        let made = DirBuilder::new()
            .mode(0o700)
            .create(path)
            .and_then(|()| self.account.map_or(Ok(()), |(uid, gid)| chown(path, Some(uid), Some(gid))));
        made.map_err(failed("make a folder for the servers' account"))
    }

    /// Begins to unpack the data of a member into its folder.
    pub(super) fn unpack(&self, programs: &Programs, archive: &Path, member: usize) -> Result<Job, Error> {
        let folder = self.of(member);
        let made = DirBuilder::new().mode(0o755).create(&folder);
        // The umask may have taken away from what was asked for.
        let made = made.and_then(|()| fs::set_permissions(&folder, Permissions::from_mode(0o755)));
        made.map_err(failed("make the folder of a member"))?;
        let data = self.data(member);
        self.make_for_account(&data)?;
        let mut command = programs.command("tar");
        command.arg("-C").arg(data).args(["-xpf", "-"]).stdout(Stdio::null());
        command.stdin(archive::open(archive).map_err(failed("open the file of initdb's folder"))?);
        Job::begin(command, "copy initdb's folder", self.job_log(member))
    }

    /// Starts a member, which becomes a server only when `running` and this process are watched by the guard.
    pub(super) fn spawn(
        &mut self,
        programs: &Programs,
        member: usize,
        running: &[u32],
    ) -> Result<Child, Error> {
        let log = self.open_log(member)?;
        let errors = log.try_clone().map_err(failed("open a log once more"))?;
        let postgres = programs.path("postgres").map_err(Error::Server)?;
        let data = self.data(member);
        let mut command =
            guard::gate(programs.command("/bin/sh"), &postgres, &["-D".as_ref(), data.as_os_str()]);
        let mut child = command.stdout(log).stderr(errors).spawn().map_err(failed("start a server"))?;
        let begun = self
            .guard
            .watch(running.iter().copied().chain([child.id()]))
            .and_then(|()| guard::open(&mut child));
        if let Err(error) = begun {
            // It waits at its gate, if it has not ended already.
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed("let a server begin")(error));
        }
        Ok(child)
    }

    pub(super) fn watch(&mut self, running: &[u32]) -> Result<(), Error> {
        self.guard.watch(running.iter().copied()).map_err(failed("tell the shell that waits for the end"))
    }

    fn open_log(&self, member: usize) -> Result<File, Error> {
        let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(self.log(member));
        opened.map_err(failed("open a log"))
    }
}
