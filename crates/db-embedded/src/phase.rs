//! The phases of a start or a release, each with its wait.

use std::fmt;

/// What was waited for at the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Another process that starts or releases this server.
    Starter,
    /// The previous server on this folder, to stop.
    PreviousServer,
    /// `initdb`, to make the data folder.
    InitDb,
    /// The server, to accept connections; after a crash it may be recovering.
    Ready,
    /// The server, to stop after its last lease was released.
    Stop,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Starter => "another process to finish starting or releasing this server",
            Phase::PreviousServer => "the previous server on this folder to stop",
            Phase::InitDb => "initdb to make the data folder",
            Phase::Ready => "the server to accept connections",
            Phase::Stop => "the server to stop",
        })
    }
}
