//! What this process keeps from the commands that it runs.

use std::fs;

/// Keeps the environment and the memory of this process from commands of the same user, who else could read them in `/proc`, and
/// attach a debugger. Root's commands can do so all the same.
pub(crate) fn shut_proc() {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(%error, "commands can read the environment of this process");
    }
}

/// Closes the files that whoever started this process left open: each command would inherit them. For a process that knows of no
/// file but the standard ones, before it has opened any.
pub(crate) fn close_inherited() {
    let Ok(open) = fs::read_dir("/dev/fd") else { return };
    // Read to the end before one is closed: the folder itself is among them, and is closed by then.
    let numbers: Vec<i32> = open
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in numbers {
        nix::unistd::close(number).ok();
    }
}
