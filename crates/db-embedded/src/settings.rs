//! The server's configuration: command line and access rules.

use std::ffi::OsString;
use std::path::Path;

use crate::error::Error;
use crate::folder::{Folder, Kind};

/// The superuser role that `initdb` makes, used for everything.
pub(crate) const ROLE: &str = "postgres";

/// Part of the socket's name only, as there is no TCP. Every client's default.
pub(crate) const PORT: &str = "5432";

/// For all servers.
const COMMON: [(&str, &str); 5] = [
    ("listen_addresses", ""),
    ("port", PORT),
    ("unix_socket_permissions", "0700"),
    ("max_connections", "200"),
    ("logging_collector", "off"),
];

/// For servers whose data is disposable: no time is spent on surviving a power loss.
const THROWAWAY: [(&str, &str); 5] = [
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
    ("shared_buffers", "32MB"),
    // In the data folder, since segments in /dev/shm would outlive a killed server.
    ("dynamic_shared_memory_type", "mmap"),
];

/// For servers whose data must survive. PostgreSQL's other defaults are durable.
const KEPT: [(&str, &str); 1] = [("shared_buffers", "128MB")];

/// The users that may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admits {
    /// The user that started the server.
    Client,
    /// Also the account that runs the server.
    ClientAndItself,
}

/// The arguments of `postgres`. The caller's settings come last, so they override ours.
pub(crate) fn arguments(folder: &Folder, sockets: &Path, own: &[(String, String)]) -> Vec<OsString> {
    let mut arguments = vec![OsString::from("-D"), folder.data().into_os_string()];
    let mut set = |name: &str, value: OsString| {
        let mut assignment = OsString::from(format!("{name}="));
        assignment.push(value);
        arguments.extend([OsString::from("-c"), assignment]);
    };
    let by_kind: &[_] = match folder.kind {
        Kind::Throwaway => &THROWAWAY,
        Kind::Kept => &KEPT,
    };
    for (name, value) in COMMON.iter().chain(by_kind) {
        set(name, value.into());
    }
    set("unix_socket_directories", quoted(sockets));
    for (name, value) in own {
        set(name, value.into());
    }
    arguments
}

/// Quoted, since the setting is a list that commas and blanks separate.
fn quoted(path: &Path) -> OsString {
    let mut text = OsString::from("\"");
    for (index, part) in path.as_os_str().as_encoded_bytes().split(|byte| *byte == b'"').enumerate() {
        if index > 0 {
            text.push("\"\"");
        }
        text.push(std::os::unix::ffi::OsStrExt::from_bytes(part) as &std::ffi::OsStr);
    }
    text.push("\"");
    text
}

/// Lets only the user of this process connect, as [`ROLE`], and on request the server's own account.
///
/// With `peer`, the kernel names the connecting user, so there is no password. With `trust`, every process that reaches the
/// socket would be superuser. Written at every start, since the user may differ from the last one.
pub(crate) fn write_access_rules(folder: &Folder, admits: Admits) -> Result<(), Error> {
    let data = folder.data();
    folder.write(&data.join("pg_hba.conf"), "local all all peer map=owner\n")?;
    let line = |user: &str| format!("owner \"{}\" {ROLE}\n", user.replace('"', "\"\""));
    let mut names = line(folder.account.client());
    if admits == Admits::ClientAndItself && folder.account.is_other() {
        names.push_str(&line(folder.account.name()));
    }
    folder.write(&data.join("pg_ident.conf"), &names)
}
