//! A PostgreSQL server without a database, which answers by rules.
//!
//! [`Script`] is the server. A [`Rule`] names a statement, and a [`Reply`], [`Rows`] or a [`ServerError`] is the answer. The driver is the
//! real one: it connects by TCP, prepares, binds and reads rows as from any server.
//!
//! ```
//! use db_testkit::script::{Rows, Rule, Script, ServerError};
//! use sqlx::{Connection, PgConnection};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let script = Script::start([
//!     Rule::statement("select name from shop where id = $1").bound((7_i64,)).reply(Rows::new(["name"]).row(("first",))),
//!     Rule::beginning("insert into shop")
//!         .reply(ServerError::new("23505", "duplicate key value").table("shop").constraint("shop_name")),
//! ])?;
//! let mut connection = PgConnection::connect(&script.url()).await?;
//!
//! let name: String =
//!     sqlx::query_scalar("select name from shop where id = $1").bind(7_i64).fetch_one(&mut connection).await?;
//! let taken = sqlx::query("insert into shop (name) values ('first')").execute(&mut connection).await.unwrap_err();
//!
//! assert_eq!(name, "first");
//! assert_eq!(taken.as_database_error().unwrap().constraint(), Some("shop_name"));
//! script.finish();
//! # Ok(())
//! # }
//! ```
//!
//! # Getting in
//!
//! A script lets in any user, without a password and without TLS. [`ScriptBuilder::password`] asks for a password by
//! SCRAM-SHA-256, as a server does; [`ScriptBuilder::tls`] encrypts the connections of clients that ask for TLS, with a certificate
//! that they can verify.
//!
//! # Rules from a real run
//!
//! [`Script::record`] stands in front of a test's database and keeps what it answers in a file; [`Script::replay`] answers from the
//! file. A test that records compares each later run with the file, so that the file stays true to the server.

mod book;
mod login;
mod own;
mod record;
mod reply;
mod rule;
mod scram;
mod session;
mod state;
mod text;
mod tls;
mod transaction;
mod values;
mod wire;
mod words;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use sqlx::postgres::PgConnectOptions;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::error::Error;
use book::Book;
use login::Login;
use scram::Verifier;
use session::{Shared, lock, serve};
use state::State;
use tls::Tls;

pub use record::Recorder;
pub use reply::{Reply, Rows, ServerError};
pub use rule::Rule;
pub use values::Values;

/// A PostgreSQL server that has no database, and answers by [rules](Rule).
///
/// A session answers statements about the session without a rule: `BEGIN`, `COMMIT`, `ROLLBACK` and savepoints, with the transaction
/// status of the protocol; `SET`, `RESET`, `DEALLOCATE`, `DISCARD` and `set_config`; `LISTEN`, `UNLISTEN`, `NOTIFY` and `pg_notify`,
/// whose notifications arrive after the commit at the listening sessions; and the questions of the pools and the bus of the `db-`
/// crates. A rule for such a statement takes precedence.
///
/// A statement without a rule is answered with an error of SQLSTATE `TK000`, whose message shows the statement and the rules. Such a
/// statement fails the test, and so does an unused rule: in [`finish`](Script::finish), or else when the script is dropped.
///
/// The script runs in a thread of its own, so it answers while a test blocks, and listens on `127.0.0.1`. It accepts any user, or
/// only clients with its [password](ScriptBuilder::password). It answers a request for TLS with "no", or
/// [with a certificate](ScriptBuilder::tls).
pub struct Script {
    shared: Shared,
    address: SocketAddr,
    password: Option<String>,
    login: Arc<Login>,
    /// Dropping it ends the thread.
    alive: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The rules of a script that has not begun.
#[derive(Default)]
pub struct ScriptBuilder {
    book: Book,
    lists: usize,
    password: Option<String>,
    has_tls: bool,
}

impl ScriptBuilder {
    /// Adds a rule.
    #[must_use]
    pub fn rule(mut self, rule: Rule) -> ScriptBuilder {
        self.book.add(rule, None);
        self
    }

    /// Adds rules that are used in this order, each once or [as often as it says](Rule::times).
    #[must_use]
    pub fn in_order(mut self, rules: impl IntoIterator<Item = Rule>) -> ScriptBuilder {
        self.lists += 1;
        for mut rule in rules {
            rule.times = rule.times.or(Some(1));
            self.book.add(rule, Some(self.lists));
        }
        self
    }

    /// Accepts only clients that prove by SCRAM-SHA-256 that they have this password; others get the error 28P01. The
    /// [address](Script::url) contains the password.
    ///
    /// A login takes both sides 4096 rounds of SHA-256, as at a server: some tens of milliseconds in a driver that is built without
    /// optimization.
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> ScriptBuilder {
        self.password = Some(password.into());
        self
    }

    /// Encrypts the connections of clients that ask for TLS, with a [certificate](Script::certificate) for `127.0.0.1` and
    /// `localhost` that is made for this script. Clients that do not ask are accepted as well.
    ///
    /// The [address](Script::url) has `sslmode=verify-full` and the certificate's file.
    #[must_use]
    pub fn tls(mut self) -> ScriptBuilder {
        self.has_tls = true;
        self
    }

    /// Starts the script. Clients can connect when this returns.
    ///
    /// # Errors
    ///
    /// [`Error::Rules`] when the rules cannot be followed; [`Error::Script`] when the operating system does not grant a port,
    /// a thread or the certificate's file.
    pub fn start(self) -> Result<Script, Error> {
        if let Some(why) = self.book.wrong() {
            return Err(Error::Rules { why });
        }
        let failed = |action| move |source| Error::Script { action, source };
        let (listener, address) = listen().map_err(failed("listen"))?;
        let verifier =
            self.password.as_deref().map(|it| Verifier::of(it, std::array::from_fn(|_| fastrand::u8(..))));
        let tls = self.has_tls.then(Tls::new).transpose();
        let tls = tls.map_err(io::Error::other).map_err(failed("make a certificate"))?;
        let login = Arc::new(Login { verifier, tls });
        let shared: Shared = Arc::new(Mutex::new(State::of(self.book)));
        let (alive, ended) = oneshot::channel();
        let (theirs, admits) = (Arc::clone(&shared), Arc::clone(&login));
        let thread = thread::Builder::new()
            .name("db-testkit-script".into())
            .spawn(move || run(listener, &admits, &theirs, ended))
            .map_err(failed("start a thread"))?;
        Ok(Script {
            shared,
            address,
            password: self.password,
            login,
            alive: Some(alive),
            thread: Some(thread),
        })
    }
}

impl fmt::Debug for ScriptBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the password nor the rules, which hold values.
        f.debug_struct("ScriptBuilder").finish_non_exhaustive()
    }
}

impl Script {
    /// Starts a script with these rules and without a password.
    ///
    /// # Errors
    ///
    /// As [`ScriptBuilder::start`] has them.
    pub fn start(rules: impl IntoIterator<Item = Rule>) -> Result<Script, Error> {
        rules.into_iter().fold(Script::builder(), ScriptBuilder::rule).start()
    }

    /// A script that has no rule yet.
    #[must_use]
    pub fn builder() -> ScriptBuilder {
        ScriptBuilder::default()
    }

    /// The address of its database.
    #[must_use]
    pub fn url(&self) -> String {
        url(self.address, self.password.as_deref(), self.certificate())
    }

    /// The file of its certificate, in PEM, if it has [TLS](ScriptBuilder::tls): for `sslrootcert`. The end of the script removes the
    /// file.
    #[must_use]
    pub fn certificate(&self) -> Option<&Path> {
        self.login.tls.as_ref().map(Tls::certificate)
    }

    /// The same for sqlx.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        options(&self.url())
    }

    /// The statements of all sessions so far, in their order. Of those that a session answers without a rule, the list has only the
    /// statements that begin or end transactions or savepoints.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        lock(&self.shared).asked.clone()
    }

    /// The process ids of the cancelled sessions so far, by a cancel request or by `pg_cancel_backend`.
    #[must_use]
    pub fn cancels(&self) -> Vec<i32> {
        lock(&self.shared).cancels.clone()
    }

    /// How many sessions are open.
    #[must_use]
    pub fn open_sessions(&self) -> usize {
        lock(&self.shared).open()
    }

    /// How many clients have logged in so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        lock(&self.shared).accepted
    }

    /// How many sessions listen to the channel.
    #[must_use]
    pub fn listeners(&self, channel: &str) -> usize {
        lock(&self.shared).listeners(channel)
    }

    /// Notifies the sessions that listen to the channel.
    pub fn notify(&self, channel: &str, payload: &str) {
        lock(&self.shared).notify(0, channel, payload);
    }

    /// Closes all connections without a message. New connections are accepted.
    pub fn disconnect(&self) {
        lock(&self.shared).end_all(false);
    }

    /// Ends all sessions with the error 57P01, as a server does that is shut down. New connections are accepted.
    pub fn terminate(&self) {
        lock(&self.shared).end_all(true);
    }

    /// Ends the script, and fails the test if a statement had no rule or a rule was not used.
    ///
    /// # Panics
    ///
    /// In these two cases, with the statements and the rules.
    #[track_caller]
    pub fn finish(mut self) {
        if let Some(failure) = self.end() {
            panic!("the script was not followed:\n{failure}");
        }
    }

    fn end(&mut self) -> Option<String> {
        self.alive = None;
        let panicked = self.thread.take()?.join().is_err();
        let failure = lock(&self.shared).book.failure();
        failure.or_else(|| panicked.then(|| "its thread panicked".to_owned()))
    }
}

/// Fails the test as [`finish`](Script::finish) does, unless it fails already.
impl Drop for Script {
    fn drop(&mut self) {
        let Some(failure) = self.end() else { return };
        if thread::panicking() {
            // The test may have failed for that.
            eprintln!("db-testkit: the script was not followed:\n{failure}");
        } else {
            panic!("the script was not followed:\n{failure}");
        }
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the rules: they hold values.
        f.debug_struct("Script").field("port", &self.address.port()).finish_non_exhaustive()
    }
}

fn url(address: SocketAddr, password: Option<&str>, certificate: Option<&Path>) -> String {
    let mut url = url::Url::parse("postgres://script@localhost/script").expect("an address");
    let _ = url.set_ip_host(address.ip());
    let _ = url.set_port(Some(address.port()));
    let _ = url.set_password(password);
    match certificate {
        None => url.query_pairs_mut().append_pair("sslmode", "disable"),
        Some(file) => url
            .query_pairs_mut()
            .append_pair("sslmode", "verify-full")
            .append_pair("sslrootcert", &file.to_string_lossy()),
    };
    url.into()
}

fn options(url: &str) -> PgConnectOptions {
    PgConnectOptions::from_str(url).expect("sqlx reads the address")
}

fn listen() -> io::Result<(std::net::TcpListener, SocketAddr)> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// The script's thread.
fn run(
    listener: std::net::TcpListener,
    login: &Arc<Login>,
    shared: &Shared,
    mut ended: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the operating system grants a poll descriptor");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).expect("the listener can be polled");
        // They end with the thread.
        let mut sessions = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                _ = &mut ended => return,
                Some(session) = sessions.join_next() => {
                    // The end of the script reports the panic.
                    if let Err(error) = session && let Ok(panic) = error.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            // A client that closes at once is none.
            if let Ok((stream, _)) = accepted {
                // Answers are small, and clients wait for them.
                let _ = stream.set_nodelay(true);
                sessions.spawn(serve(Box::new(stream), Arc::clone(login), Arc::clone(shared)));
            }
        }
    });
}
