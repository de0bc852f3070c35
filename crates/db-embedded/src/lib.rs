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
//! # Which one
//!
//! | | data | who shares it |
//! |---|---|---|
//! | [`Server::throwaway`] | removed at the end, and written without care for power cuts | nobody |
//! | [`Server::shared`] | the same | every process of this user that gives the same name |
//! | [`Server::kept`] | survives | every process that names the same folder |
//!
//! A [`Server`] is a lease. The first one starts the server, the last one to go ends it, however its process ends: Ctrl-C,
//! a panic, `SIGKILL`. There is no daemon to install and nothing to clean up.
//!
//! # Blocking
//!
//! Everything here blocks and none of it needs a runtime. In async code, call it inside `spawn_blocking`.
//!
//! # Where the programs come from
//!
//! From [`Builder::binaries`], else from the folder that the environment variable `DB_EMBEDDED_PGBIN` names, and from no
//! other place if one of these is set. Otherwise the first of `PATH`, `pg_config --bindir`, the newest of
//! `/usr/lib/postgresql/*/bin`, `/usr/pgsql-*/bin`, `/usr/libexec/postgresql*`, `/opt/homebrew/opt/postgresql@*/bin`,
//! `/usr/local/opt/postgresql@*/bin`, and `/usr/local/pgsql/bin` that has both `postgres` and `initdb`, version 10 or
//! later. Kept data takes those of the major version that made it.
//!
//! # Who may connect
//!
//! The server listens on a Unix socket in a folder that only its own account can enter, not on TCP, and has the kernel
//! tell who is at the other end: exactly the OS user that started it may connect, as the superuser `postgres`. There is
//! no password to keep, and nobody else gets in, were the folder wide open.
//!
//! PostgreSQL refuses to run as root. For root it runs as the user `postgres`, or else `nobody`, and still only root may
//! connect; [`Builder::allow_service_account`] lets in that user, too.
//!
//! # How it ends
//!
//! Each user holds a shared lock on the file `lease`; the kernel takes it away when a process ends. A supervisor, a short
//! shell script in a process group of its own, waits to get that lock exclusively, and then stops the server. Meanwhile it
//! revives a server that dies, and gives up when that dies five times within ten seconds of its start. A killed supervisor
//! takes nothing with it: the next one to join starts another, which adopts the server.
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
mod pidfile;
mod place;
mod server;
mod settings;
mod sockets;
mod start;
mod supervisor;
mod version;

pub use binaries::Search;
pub use builder::Builder;
pub use deadline::Phase;
pub use error::Error;
pub use server::{Released, Server};
pub use version::Version;
