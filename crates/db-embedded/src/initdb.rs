//! Makes a data folder with `initdb`.

use std::fs;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::binaries::Binaries;
use crate::deadline::Deadline;
use crate::error::{Error, IoResultExt};
use crate::folder::{Folder, Kind, random_name};
use crate::phase::Phase;
use crate::settings::ROLE;
use crate::supervisor::{self, LockTool};

const UNFINISHED: &str = "data.new-";

/// Runs `initdb` in a folder of another name and renames that folder at the end, so that the remains of a killed `initdb` are
/// never taken for data.
pub(crate) fn make_data(
    folder: &Folder,
    binaries: &Binaries,
    tool: LockTool,
    deadline: Deadline,
) -> Result<(), Error> {
    sweep_unfinished(folder);
    let (log, log_start) = folder.open_log()?;
    let new = folder.path.join(format!("{UNFINISHED}{}", random_name()));
    folder.make_dir(&new)?;

    let mut arguments = vec![binaries.initdb().into_os_string(), "-D".into(), new.clone().into_os_string()];
    arguments.extend(["-U", ROLE, "-A", "peer", "-E", "UTF8", "--locale=C"].map(Into::into));
    if folder.kind == Kind::Throwaway {
        // Do not sync to disk.
        arguments.push("-N".into());
    }
    let script = supervisor::Script { verb: "init", folder, sockets: None, tool, orphan: None };
    let mut child = script.spawn(arguments, log)?;
    let ended = deadline.poll(Phase::InitDb, || child.try_wait().doing("wait for initdb in", &new));
    let status = match ended {
        Ok(status) => status,
        Err(error) => {
            if let Ok(group) = i32::try_from(child.id()) {
                // It may have ended just now.
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            child.wait().doing("wait for initdb in", &new)?;
            return Err(error);
        }
    };
    if !status.success() {
        let output = folder.log_since(log_start);
        sweep_unfinished(folder);
        return Err(Error::disk_full(&folder.path, &output)
            .unwrap_or(Error::InitFailed { folder: folder.data(), output }));
    }
    fs::rename(&new, folder.data()).doing("rename to `data`", &new)
}

/// Removes the remains of killed runs. An `initdb` that outlived its starter may still be writing: then the next start removes
/// the rest.
fn sweep_unfinished(folder: &Folder) {
    for entry in fs::read_dir(&folder.path).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes())
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::debug!(folder = %entry.path().display(), %error, "cannot remove an unfinished data folder");
        }
    }
}
