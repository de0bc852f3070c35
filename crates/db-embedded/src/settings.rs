//! How the server is configured: the command line, and who may connect.

use std::ffi::OsString;
use std::path::Path;

use crate::error::Error;
use crate::folder::{Folder, Kind};

/// The role that everything happens as: the one that `initdb` makes.
pub(crate) const ROLE: &str = "postgres";

/// Only in the name of the socket; there is no TCP. The default of every client.
pub(crate) const PORT: &str = "5432";

/// For all servers.
const COMMON: [(&str, &str); 5] = [
    ("listen_addresses", ""),
    ("port", PORT),
    ("unix_socket_permissions", "0700"),
    ("max_connections", "200"),
    ("logging_collector", "off"),
];

/// For servers whose data nobody will miss: no time spent on surviving a power cut.
const THROWAWAY: [(&str, &str); 5] = [
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
    ("shared_buffers", "32MB"),
    // In the data folder, not in /dev/shm, where what a killed server had would stay.
    ("dynamic_shared_memory_type", "mmap"),
];

/// For servers whose data must survive. The rest of PostgreSQL's defaults is durable.
const KEPT: [(&str, &str); 1] = [("shared_buffers", "128MB")];

/// Whose processes may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admits {
    /// Those of the user that started the server.
    Client,
    /// Those of the account that the server runs as, too.
    ClientAndItself,
}

/// The arguments of `postgres`. What the user set comes last, and so wins.
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

/// The setting is a list: a comma or a blank would end the name.
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

/// Lets exactly the user that this process runs as connect, as [`ROLE`], and on request the server's own account.
///
/// `peer` asks the kernel who is at the other end of the socket, so there is no password to keep. `trust` would make
/// whoever gets to the socket a superuser. Written at every start, since the user may be another one than last time.
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
