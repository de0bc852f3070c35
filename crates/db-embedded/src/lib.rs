//! A PostgreSQL that starts by itself, from the programs on this machine.
//!
//! ```
//! use db_embedded::Server;
//!
//! # use std::{fs::{Permissions, set_permissions}, os::unix::fs::PermissionsExt};
//! # fn main() -> Result<(), db_embedded::Error> {
//! # let parent = tempfile::tempdir_in("/tmp").unwrap();
//! # set_permissions(&parent, Permissions::from_mode(0o711)).unwrap();
//! # let folder = parent.path().join("postgres");
//! // Such as /var/lib/my-service/postgres.
//! let server = Server::kept(&folder).start()?;
//! println!("psql '{}'", server.url("postgres"));
//! # drop(server);
//! # Ok(()) }
//! ```
//!
//! # Which kind
//!
//! | | data | who shares it |
//! |---|---|---|
//! | [`Server::throwaway`] | removed at the end, and not safe against power loss | nobody |
//! | [`Server::shared`] | the same | every process of this user that gives the same name |
//! | [`Server::kept`] | kept | every process that names the same folder |
//!
//! A [`Server`] is a lease. The first lease starts the server, and the end of the last one stops it, however its process ends:
//! Ctrl-C, a panic, `SIGKILL`. There is no daemon to install and nothing to clean up.
//!
//! # Blocking
//!
//! Every call blocks, and none needs a runtime. In async code, use `spawn_blocking`.
//!
//! # Where the programs come from
//!
//! [`Builder::binaries`] or, without it, the environment variable `DB_EMBEDDED_PGBIN` names the only folder to search. Without
//! either, the programs are the first with both `postgres` and `initdb` of version 10 or later in `PATH`, `pg_config --bindir`,
//! the newest of `/usr/lib/postgresql/*/bin`, `/usr/pgsql-*/bin`, `/usr/libexec/postgresql*`,
//! `/opt/homebrew/opt/postgresql@*/bin`, `/usr/local/opt/postgresql@*/bin`, and `/usr/local/pgsql/bin`. Kept data needs
//! programs of the major version that made it.
//!
//! # Who may connect
//!
//! The server listens on a Unix socket in a folder that only its own account can enter, not on TCP, and the kernel tells it
//! which user connects: only the OS user that started the server may connect, as the superuser `postgres`. There is no
//! password, and other users are refused even if they reach the socket.
//!
//! PostgreSQL refuses to run as root. When root starts it, it runs as the user `postgres`, or else `nobody`, and still only
//! root may connect; [`Builder::allow_service_account`] also lets in that user.
//!
//! # How it ends
//!
//! Each lease is a shared lock on the file `lease`; the kernel releases it when the process ends. A supervisor, a short shell
//! script in a process group of its own, waits for the exclusive lock and then stops the server. Meanwhile it restarts a server
//! that dies, and gives up after five deaths within ten seconds of a start. If the supervisor is killed, the server goes on,
//! and the next process that joins starts a supervisor that adopts it.
//!
//! The supervisor needs `/bin/sh`, and `flock` of util-linux or `perl`.
//!
//! # Features
//!
//! This crate has no cargo features.

mod account;
mod binaries;
mod builder;
mod deadline;
mod error;
mod folder;
mod initdb;
mod lock;
mod orphan;
mod phase;
mod pidfile;
mod place;
mod programs;
mod search;
mod server;
mod settings;
mod sockets;
mod start;
mod supervisor;
mod version;

pub use builder::Builder;
pub use error::Error;
pub use phase::Phase;
pub use programs::Programs;
pub use search::Search;
pub use server::{Released, Server};
pub use version::Version;
