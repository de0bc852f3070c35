//! The address of a server of a cluster.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;
use url::Url;

use crate::address;
use crate::error::Error;
use crate::server::APPLICATION_NAME;

/// The first member's. The number is only a part of the socket's name.
const FIRST_PORT: u16 = 5432;

/// A server of a [`Cluster`](crate::Cluster): the same one for as long as the cluster lives, whether it is a primary or a
/// standby. Cloning it is cheap.
#[derive(Clone)]
pub struct Member {
    number: usize,
    port: u16,
    sockets: PathBuf,
    url: Url,
    options: PgConnectOptions,
}

impl Member {
    pub(super) fn new(number: usize, sockets: PathBuf) -> Result<Member, Error> {
        let port = u16::try_from(number).ok().and_then(|number| FIRST_PORT.checked_add(number));
        let port = port.ok_or_else(|| Error::Address { why: format!("no port for member {number}") })?;
        let url = address::through_socket("postgres://localhost/postgres", "postgres", &sockets, port)?;
        let options = PgConnectOptions::from_str(url.as_str())
            .map_err(|error| Error::Address { why: error.to_string() })?;
        Ok(Member { number, port, sockets, url, options })
    }

    /// 0 for the first primary, then 1 and so on for its standbys.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// The address of its database `postgres`, as the superuser `postgres`. Another role needs no password either: replace
    /// the user in it.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.to_string()
    }

    /// The address of another database.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        address::with_database(&self.url, database).into()
    }

    /// The same as [`url`](Member::url), for sqlx.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// The folder of the sockets, the same for all members.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.sockets
    }

    /// The number in the socket's name. No member listens on TCP; a [`Proxy`](crate::Proxy) in front of one does.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// For the kit's own questions.
    pub(super) fn asking(&self) -> PgConnectOptions {
        self.options().application_name(APPLICATION_NAME).disable_statement_logging()
    }
}

/// The path of the socket tells two members apart, also those of two clusters.
impl PartialEq for Member {
    fn eq(&self, other: &Member) -> bool {
        (self.port, &self.sockets) == (other.port, &other.sockets)
    }
}

impl Eq for Member {}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("number", &self.number)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}
