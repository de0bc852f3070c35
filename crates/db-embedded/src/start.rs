//! Joins the server of a folder, or starts it.
//!
//! Locks are always taken in the order `start`, `lease`, `running`, and only the holder of `start` tries `running`: a
//! supervisor that finds `running` locked concludes that another supervisor runs.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::account::Account;
use crate::binaries::Binaries;
use crate::deadline::Deadline;
use crate::error::{Error, IoResultExt};
use crate::folder::{Folder, Kind};
use crate::initdb;
use crate::lock::{LockFile, Mode};
use crate::orphan::{self, Orphan};
use crate::phase::Phase;
use crate::pidfile::PidFile;
use crate::place::Place;
use crate::server::Server;
use crate::settings::{self, Admits};
use crate::sockets::Sockets;
use crate::supervisor::{LockTool, Script, Watch};

/// The server's message when processes of its predecessor still use the data.
const STILL_ATTACHED: &str = "pre-existing shared memory block";

/// The request for a server.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) place: Place,
    pub(crate) in_memory: bool,
    pub(crate) binaries: Option<PathBuf>,
    pub(crate) timeout: Duration,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) admits: Admits,
}

impl Plan {
    pub(crate) fn carry_out(&self) -> Result<Server, Error> {
        let account = Account::find()?;
        let deadline = Deadline::after(self.timeout);
        // `None` if the end of the previous server removed the folder meanwhile; then tries again.
        deadline.poll(Phase::PreviousServer, || {
            let folder = self.place.open(&account, self.in_memory)?;
            let take = |path: PathBuf, mode, phase| LockFile::take(&path, mode, &account, deadline, phase);
            let Some(start) = take(folder.start_lock(), Mode::Exclusive, Phase::Starter)? else {
                return Ok(None);
            };
            // If the supervisor is stopping the server, this waits until it has finished.
            let Some(lease) = take(folder.lease_lock(), Mode::Shared, Phase::PreviousServer)? else {
                return Ok(None);
            };
            if !start.is_current() {
                return Ok(None);
            }
            let file = match join(&folder, deadline)? {
                Some(file) => file,
                None => self.bring_up(&folder, &lease, deadline)?,
            };
            folder.mark_started()?;
            Server::new(folder, lease, &file, self.timeout).map(Some)
        })
    }

    /// Starts or adopts a server, and cleans up if that fails.
    fn bring_up(&self, folder: &Folder, lease: &LockFile, deadline: Deadline) -> Result<PidFile, Error> {
        let result = self.bring_up_or_fail(folder, deadline);
        match &result {
            Ok(file) => {
                let (path, waited) = (folder.path.display(), deadline.waited());
                tracing::info!(folder = %path, pid = file.pid, ?waited, "PostgreSQL is ready");
            }
            Err(_) => {
                if let Err(error) = abandon(folder, lease, deadline) {
                    tracing::warn!(folder = %folder.path.display(), %error, "cannot remove the folder of a failed start");
                }
            }
        }
        result
    }

    fn bring_up_or_fail(&self, folder: &Folder, deadline: Deadline) -> Result<PidFile, Error> {
        let tool = LockTool::find(&folder.account)?;
        let data = folder.data();
        let orphan = Orphan::find(folder, deadline)?;
        let made_by = folder.made_by()?;
        let binaries = Binaries::find(
            self.binaries.as_deref(),
            made_by.as_deref().map(|made_by| (data.as_path(), made_by)),
            &folder.account,
        )?;
        let sockets = if let Some(orphan) = &orphan {
            orphan.sockets.clone()
        } else {
            if folder.kind == Kind::Throwaway {
                orphan::sweep_beside(folder, deadline);
            }
            prepare(folder, made_by.is_none(), &binaries, tool, self.admits, deadline)?
        };
        let script = Script {
            verb: "serve",
            folder,
            sockets: sockets.to_remove(),
            tool,
            orphan: orphan.as_ref().map(|it| it.pid),
        };
        let served = deadline.poll(Phase::PreviousServer, || {
            match self.serve(folder, &script, &binaries, &sockets, deadline) {
                // The processes of a killed server need a while to notice its death and to release the data.
                Err(Error::StartFailed { log, .. }) if log.contains(STILL_ATTACHED) => Ok(None),
                served => served.map(Some),
            }
        });
        if let (Err(Error::StartFailed { .. } | Error::DiskFull { .. }), Some(path)) =
            (&served, sockets.to_remove())
        {
            fs::remove_dir_all(path).doing("remove", path)?;
        }
        served
    }

    fn serve(
        &self,
        folder: &Folder,
        script: &Script<'_>,
        binaries: &Binaries,
        sockets: &Sockets,
        deadline: Deadline,
    ) -> Result<PidFile, Error> {
        let (log, log_start) = folder.open_log()?;
        let mut program = vec![binaries.postgres().into_os_string()];
        program.extend(settings::arguments(folder, sockets.path(), &self.settings));
        let watch = Watch::begin(script.spawn(program, log)?)?;
        deadline.poll(Phase::Ready, || {
            let ended = watch.has_ended();
            match PidFile::read(&folder.data())? {
                // An adopted server accepts connections before its supervisor runs.
                Some(file) if file.accepts_connections() && is_supervised(folder)? => Ok(Some(file)),
                _ if ended => {
                    let log = folder.log_since(log_start);
                    Err(Error::disk_full(&folder.path, &log)
                        .unwrap_or(Error::StartFailed { folder: folder.path.clone(), log }))
                }
                _ => Ok(None),
            }
        })
    }
}

/// Removes the folder of a throwaway that did not start. A live supervisor does that itself once our lease ends.
fn abandon(folder: &Folder, lease: &LockFile, deadline: Deadline) -> Result<(), Error> {
    if folder.kind == Kind::Throwaway && lease.try_take(Mode::Exclusive)? && !is_supervised(folder)? {
        orphan::finish(folder, deadline)?;
    }
    Ok(())
}

/// Makes everything that a new server needs on disk.
fn prepare(
    folder: &Folder,
    is_empty: bool,
    binaries: &Binaries,
    tool: LockTool,
    admits: Admits,
    deadline: Deadline,
) -> Result<Sockets, Error> {
    if is_empty {
        initdb::make_data(folder, binaries, tool, deadline)?;
    } else {
        PidFile::remove_if_stale(&folder.data())?;
    }
    settings::write_access_rules(folder, admits)?;
    folder.set_version(binaries.version)?;
    let sockets = Sockets::make(folder)?;
    folder.mark_starting()?;
    Ok(sockets)
}

/// Waits until the supervised server accepts connections; `None` if there is no supervisor.
fn join(folder: &Folder, deadline: Deadline) -> Result<Option<PidFile>, Error> {
    deadline.poll(Phase::Ready, || {
        if !is_supervised(folder)? {
            return Ok(Some(None));
        }
        Ok(PidFile::read(&folder.data())?.filter(PidFile::accepts_connections).map(Some))
    })
}

/// Whether a supervisor holds `running`. This check takes the lock for a moment, so a supervisor tries for a whole second.
fn is_supervised(folder: &Folder) -> Result<bool, Error> {
    match LockFile::open(&folder.running_lock(), &folder.account)? {
        Some(running) => Ok(!running.try_take(Mode::Exclusive)?),
        None => Ok(false),
    }
}
