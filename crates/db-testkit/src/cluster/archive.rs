//! The data folder that `initdb` makes, kept as one file for each version: each member of a cluster gets a copy of it.
//!
//! One file, and not a folder: it appears and goes in one step, and a reader that has it open keeps it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use db_embedded::Programs;
use nix::unistd::Uid;
use sha2::{Digest, Sha256};

use super::home::Home;
use super::programs::{Job, failed};
use crate::error::Error;

/// As a shell script of the servers' account: `$0` is a folder, the rest `initdb` and its arguments. The settings are in a
/// file beside the data folder, so that `pg_rewind`, which copies all of the source's files, leaves them alone.
const MAKE: &str = r#"
"$@" -D "$0" >&2 && echo "include = '../member.conf'" >>"$0/postgresql.conf" && exec tar -cf - -C "$0" ."#;

/// Segments of 1 MB, and not 16, make each copy some 15 MB smaller.
const ARGUMENTS: [&str; 9] =
    ["-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C", "--wal-segsize=1"];

/// A file that nobody used for so long is removed.
const KEPT_FOR: Duration = Duration::from_hours(24);

/// The file, open. Made if this user has none for these programs, which takes half a second.
pub(super) async fn find_or_make(programs: &Programs, home: &Home) -> Result<PathBuf, Error> {
    let prefix = format!("db-testkit-{}-initdb-", Uid::effective());
    let stored = home.temporary().join(format!("{prefix}{}.tar", digest(programs)));
    let is_stored = open(&stored).is_ok_and(|file| mark_used(&file).is_ok());
    remove_unused(home.temporary(), &prefix);
    if is_stored {
        return Ok(stored);
    }
    let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(10).collect();
    let (new, work) = (Unfinished(stored.with_extension(random)), home.folder().join("initdb"));
    home.make_for_account(&work)?;
    make(programs, &work, &new.0, home).await?;
    // There in one step. Of two that are made at the same time, both are good.
    fs::rename(&new.0, &stored).map_err(failed("keep the file of initdb's folder"))?;
    fs::remove_dir_all(&work).map_err(failed("remove initdb's folder"))?;
    Ok(stored)
}

/// A file that is removed unless it gets another name.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It is not there when it has another name.
        let _ = fs::remove_file(&self.0);
    }
}

async fn make(programs: &Programs, work: &Path, file: &Path, home: &Home) -> Result<(), Error> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let mut command = programs.command("/bin/sh");
    command.args(["-c", MAKE]).arg(work).arg(programs.path("initdb").map_err(Error::Server)?).args(ARGUMENTS);
    command.stdin(Stdio::null()).stdout(file.map_err(failed("make the file of initdb's folder"))?);
    Job::begin(command, "run initdb", home.folder().join("initdb.log"))?.end().await
}

/// Others may write to the folder for temporary files: only a file of this user counts.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() && metadata.uid() == Uid::effective().as_raw() {
        Ok(file)
    } else {
        Err(io::Error::other("it belongs to another user"))
    }
}

/// Other programs, or other arguments, make another file.
fn digest(programs: &Programs) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{} {} {MAKE} {ARGUMENTS:?}", programs.folder().display(), programs.version()));
    const_hex::encode(&hash.finalize()[..4])
}

#[expect(clippy::disallowed_methods, reason = "the time of a file is compared with that of another day")]
fn mark_used(file: &File) -> io::Result<()> {
    file.set_modified(SystemTime::now())
}

/// Of versions that are gone, and of clusters that were killed while they made it. A failure is no reason not to start.
fn remove_unused(base: &Path, prefix: &str) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        let age = entry.metadata().and_then(|it| it.modified()).ok().and_then(|then| then.elapsed().ok());
        if age.is_some_and(|age| age > KEPT_FOR) {
            let removed = fs::remove_file(entry.path());
            tracing::debug!(file = %entry.path().display(), ?removed, "initdb's folder of a version that nobody uses");
        }
    }
}
