//! Protects this process from the commands that it runs.

use std::fs;

/// Makes this process's environment and memory unreadable for commands of the same user, which could otherwise read them in
/// `/proc` or attach a debugger. Root's commands still can.
pub(crate) fn shut_proc() {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(%error, "commands can read the environment of this process");
    }
}

/// Closes the files that the caller of this process left open, which each command would inherit. Call it before any file is
/// opened.
pub(crate) fn close_inherited() {
    let Ok(open) = fs::read_dir("/dev/fd") else { return };
    // The whole list is read before any file is closed: the folder's own descriptor is in it, and is closed by then.
    let numbers: Vec<i32> = open
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in numbers {
        nix::unistd::close(number).ok();
    }
}
