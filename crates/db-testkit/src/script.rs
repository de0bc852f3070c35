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

mod book;
mod login;
mod own;
mod reply;
mod rule;
mod session;
mod state;
mod text;
mod transaction;
mod values;
mod wire;
mod words;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use sqlx::postgres::PgConnectOptions;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::error::Error;
use book::Book;
use login::Login;
use session::{Shared, lock, serve};
use state::State;

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
/// only clients with its [password](ScriptBuilder::password).
pub struct Script {
    shared: Shared,
    address: SocketAddr,
    password: Option<String>,
    /// Dropping it ends the thread.
    alive: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The rules of a script that has not begun.
#[derive(Debug, Default)]
pub struct ScriptBuilder {
    book: Book,
    lists: usize,
    login: Login,
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

    /// Accepts only clients that send this password in clear text. The [address](Script::url) contains it.
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> ScriptBuilder {
        self.login.password = Some(password.into());
        self
    }

    /// Starts the script. Clients can connect when this returns.
    ///
    /// # Errors
    ///
    /// [`Error::Rules`] when the rules cannot be followed; [`Error::Script`] when the operating system does not grant a port or
    /// a thread.
    pub fn start(self) -> Result<Script, Error> {
        if let Some(why) = self.book.wrong() {
            return Err(Error::Rules { why });
        }
        let (listener, address) = listen().map_err(|source| Error::Script { action: "listen", source })?;
        let shared: Shared = Arc::new(Mutex::new(State::of(self.book)));
        let password = self.login.password.clone();
        let (alive, ended) = oneshot::channel();
        let (theirs, login) = (Arc::clone(&shared), Arc::new(self.login));
        let thread = thread::Builder::new()
            .name("db-testkit-script".into())
            .spawn(move || run(listener, &login, &theirs, ended))
            .map_err(|source| Error::Script { action: "start a thread", source })?;
        Ok(Script { shared, address, password, alive: Some(alive), thread: Some(thread) })
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
        url(self.address, self.password.as_deref())
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

fn url(address: SocketAddr, password: Option<&str>) -> String {
    let mut url = url::Url::parse("postgres://script@localhost/script?sslmode=disable").expect("an address");
    let _ = url.set_ip_host(address.ip());
    let _ = url.set_port(Some(address.port()));
    let _ = url.set_password(password);
    url.into()
}

fn options(url: &str) -> PgConnectOptions {
    PgConnectOptions::from_str(url).expect("sqlx reads the address")
}

fn listen() -> std::io::Result<(std::net::TcpListener, SocketAddr)> {
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
