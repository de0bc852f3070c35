//! The settings of a member.

use std::fmt::Write as _;
use std::path::Path;

use super::member::Member;

/// Nobody will miss the data after a power cut, and the test wants to see each change soon. `pg_rewind` needs
/// `wal_log_hints`, and what was written since the servers parted, which `wal_keep_size` keeps. A standby refuses to start
/// with a lower `max_connections` than the 100 that initdb wrote into the data.
const COMMON: [(&str, &str); 14] = [
    ("listen_addresses", ""),
    ("unix_socket_permissions", "0700"),
    ("logging_collector", "off"),
    ("max_connections", "100"),
    ("shared_buffers", "16MB"),
    // In the data folder, not in /dev/shm, where a killed server leaves it.
    ("dynamic_shared_memory_type", "mmap"),
    ("fsync", "off"),
    ("wal_level", "replica"),
    ("wal_log_hints", "on"),
    ("wal_keep_size", "256MB"),
    // With initdb's segments of 1 MB the defaults would be 16 times smaller; and the data is in memory.
    ("min_wal_size", "80MB"),
    ("max_wal_size", "256MB"),
    // A standby that finds no primary asks again after so long (default 5 s).
    ("wal_retrieve_retry_interval", "50ms"),
    ("hot_standby", "on"),
];

/// The file of a member that follows `primary`, or nobody. What the user set comes last, and so wins.
pub(super) fn file(member: &Member, primary: Option<&Member>, own: &[(String, String)]) -> String {
    let mut text = String::new();
    let mut set = |name: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name} = {}", quoted(value));
    };
    for (name, value) in COMMON {
        set(name, value);
    }
    set("port", &member.port().to_string());
    // The setting is a list: a comma or a blank would end the name.
    set(
        "unix_socket_directories",
        &format!("\"{}\"", member.socket_dir().display().to_string().replace('"', "\"\"")),
    );
    let follows = primary.map(|primary| {
        let name = format!("application_name=member{}", member.number());
        format!("{} {name}", conninfo(primary))
    });
    set("primary_conninfo", &follows.unwrap_or_default());
    for (name, value) in own {
        set(name, value);
    }
    text
}

/// The address of a member for programs that use libpq.
pub(super) fn conninfo(member: &Member) -> String {
    let path: &Path = member.socket_dir();
    let path = path.display().to_string().replace('\\', "\\\\").replace('\'', "\\'");
    format!("host='{path}' port={} user=postgres dbname=postgres", member.port())
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}
