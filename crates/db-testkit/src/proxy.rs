//! Faults of the network between a test and its server.

mod hub;
mod link;
mod messages;
mod peer;
mod way;
mod wire;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::str::FromStr;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use url::Url;

use crate::address;
use crate::db::TestDb;
use crate::error::Error;
use crate::server::TestServer;
use crate::until::PATIENCE;
use hub::{Door, Hub, Order};
#[cfg(feature = "script")]
pub(crate) use link::Direction;
use link::Mode;
#[cfg(feature = "script")]
use link::Tap;
use wire::Target;

/// A proxy in front of a test's database that can make the network fail.
///
/// Code that shall meet the faults connects by [`url`](Proxy::url) or [`options`](Proxy::options). The test itself inspects the
/// database past the proxy, with [`TestDb::pool`] and [`TestDb::sessions`].
///
/// **When a method returns, its fault is in effect** for every connection that was open at that moment: the proxy passes no
/// further byte against it. Bytes that passed before may still lie in the receiver's buffers. Faults are independent of each
/// other. Each lasts until [`heal`](Proxy::heal), except those that happen once.
///
/// The methods block for some microseconds and need no runtime: the proxy runs in a thread of its own, so it works while a test
/// blocks. Dropping it closes all its connections.
///
/// It listens on `127.0.0.1`, and lets in processes of this OS user only: it connects to the kit's server as this user, so
/// every client of the proxy is a superuser there.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> { db_testkit::run(async |db| {
/// use db_testkit::Proxy;
/// use sqlx::{ConnectOptions, Connection};
///
/// let proxy = Proxy::start(&db)?;
/// let mut connection = proxy.options().connect().await?;
///
/// proxy.reset();
///
/// assert!(matches!(connection.ping().await, Err(sqlx::Error::Io(_))));
/// proxy.options().connect().await?.ping().await?;
/// assert_eq!(proxy.accepted(), 2);
/// # Ok(())
/// # }) }
/// ```
pub struct Proxy {
    url: Url,
    options: PgConnectOptions,
    orders: Option<UnboundedSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy to this database.
    ///
    /// # Errors
    ///
    /// [`Error::Proxy`] if the operating system grants no port or thread, or, on systems other than Linux, if the server is
    /// reached by a Unix socket: the proxy cannot check there which user connects.
    pub fn start(db: &TestDb) -> Result<Proxy, Error> {
        Proxy::to(&db.direct_url(), &db.options())
    }

    /// Starts a proxy to this server. Its [`url`](Proxy::url) is that of the maintenance database; see
    /// [`url_of`](Proxy::url_of).
    ///
    /// # Errors
    ///
    /// As [`start`](Proxy::start).
    pub fn to_server(server: &TestServer) -> Result<Proxy, Error> {
        let options = server.maintenance()?;
        let database = options.get_database().unwrap_or_else(|| options.get_username()).to_owned();
        Proxy::to(&server.url_of(&database), &options)
    }

    /// Starts a proxy to the server of this address, such as a server that the test has started.
    ///
    /// # Errors
    ///
    /// [`Error::Address`]; else as [`start`](Proxy::start).
    pub fn to_address(address: &str) -> Result<Proxy, Error> {
        Proxy::to(address, &options(address)?)
    }

    fn to(url: &str, options: &PgConnectOptions) -> Result<Proxy, Error> {
        let target = target(options)?;
        let is_local = matches!(target, Target::Unix(_));
        let (listener, us) = listen().map_err(|source| Error::Proxy { action: "listen", source })?;
        let url = address::through(url, us, is_local)?;
        let options = self::options(url.as_str())?;
        let (orders, received) = unbounded_channel();
        let thread = thread::Builder::new()
            .name("db-testkit-proxy".into())
            .spawn(move || serve(listener, us, target, received))
            .map_err(|source| Error::Proxy { action: "start a thread", source })?;
        let proxy = Proxy { url, options, orders: Some(orders), thread: Some(thread) };
        Ok(proxy)
    }

    /// The address of the database through the proxy. As the database's own address, it may contain a password.
    ///
    /// To a Unix socket it says `sslmode=disable`. To a server on TCP the mode stays, and encrypted connections pass; only
    /// [`cut_answer_to`](Proxy::cut_answer_to) and [`cut_before`](Proxy::cut_before) cannot read them. `verify-full` fails,
    /// since the certificate is not for `127.0.0.1`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.to_string()
    }

    #[cfg(feature = "script")]
    pub(crate) fn address(&self) -> &Url {
        &self.url
    }

    /// Lets a listener of its own hear the bytes of each new connection, before they pass.
    #[cfg(feature = "script")]
    pub(crate) fn tap(&self, tap: impl Fn() -> Tap + Send + 'static) {
        self.tell(move |hub| hub.tap = Some(Box::new(tap)));
    }

    /// The address of another database of the server, through the proxy.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        address::with_database(&self.url, database).into()
    }

    /// The same as [`url`](Proxy::url), for sqlx.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// Delays each chunk of bytes by `each_way` in each direction, so an answer comes twice that later. It does not limit the
    /// bandwidth: chunks do not wait for each other.
    ///
    /// Bytes on their way keep their time of arrival. Each direction of a connection buffers up to 4 MiB.
    pub fn latency(&self, each_way: Duration) {
        self.tell(move |hub| hub.faults.latency.set(each_way));
    }

    /// Resets every open connection, and closes the server's side of it. New connections work.
    ///
    /// The client gets `ECONNRESET`, at once if it is reading or writing, else at its next use of the connection. The server
    /// sees an end of file at its next read: a running statement goes on, and its transaction is rolled back after it.
    pub fn reset(&self) {
        self.tell(|hub| hub.reset(|_| true));
    }

    /// Drops all bytes, in both directions, on open and on new connections, until [`heal`](Proxy::heal).
    ///
    /// The client can connect and send; nothing answers and nothing fails. A close is dropped, too: the server's session stays.
    /// New connections are accepted and do not reach the server.
    ///
    /// `heal` resets the connections that lost something; connections that were idle all the time go on.
    pub fn black_hole(&self) {
        self.tell(|hub| {
            hub.set_open(Mode::BlackHole);
            hub.door = Door::Open(Mode::BlackHole);
        });
    }

    /// Stops all bytes on open and on new connections, until [`thaw`](Proxy::thaw) or [`heal`](Proxy::heal).
    ///
    /// The client can connect, and gets no answer. Nothing is lost: after the thaw the connections go on, and what was sent
    /// meanwhile arrives.
    pub fn freeze(&self) {
        self.tell(|hub| {
            hub.set_open(Mode::Frozen);
            hub.door = Door::Open(Mode::Frozen);
        });
    }

    /// Stops the bytes on the connections that are open now, as [`freeze`](Proxy::freeze) does. New connections work.
    pub fn freeze_open(&self) {
        self.tell(|hub| hub.set_open(Mode::Frozen));
    }

    /// Lets frozen connections go on. Other faults stay.
    pub fn thaw(&self) {
        self.tell(|hub| {
            hub.thaw();
            if hub.door == Door::Open(Mode::Frozen) {
                hub.door = Door::Open(Mode::Passing);
            }
        });
    }

    /// Closes the server's side of every open connection, and keeps the client's open and silent, as after a loss of the
    /// server's state that the client does not notice. New connections work.
    ///
    /// The client can send, and never gets an answer. [`heal`](Proxy::heal) resets it.
    pub fn half_open(&self) {
        self.tell(Hub::forget);
    }

    /// Passes `bytes` more bytes from the server, counted over all connections from now, and then resets the connection that
    /// carried the last one. Happens once.
    ///
    /// The client gets those bytes, and `ECONNRESET` after them. With 0 the connection is reset in place of the next byte. A
    /// second call replaces the first.
    pub fn cut_after(&self, bytes: u64) {
        self.tell(move |hub| hub.faults.budget_to_client.set(Some(bytes)));
    }

    /// As [`cut_after`](Proxy::cut_after), for bytes from the clients.
    ///
    /// The client gets `ECONNRESET`, and the server sees the end of the connection after the last byte, likely within a message.
    pub fn cut_after_from_client(&self, bytes: u64) {
        self.tell(move |hub| hub.faults.budget_to_server.set(Some(bytes)));
    }

    /// Runs the next statement that contains this text, and resets the client's connection in place of the answer. Happens
    /// once.
    ///
    /// When the client gets its `ECONNRESET`, the server has already answered: the statement is done, and the client cannot
    /// know. Thus a `COMMIT` becomes ambiguous.
    ///
    /// The text is searched as bytes within one message, in everything that clients send: statements, bound parameters, names.
    /// If it is found where a statement is only prepared, the answer to the next completed statement on that connection is cut.
    /// Rows pass; the first message that does not pass is the one that says that the statement is complete or has failed. A
    /// second call replaces the first.
    ///
    /// # Panics
    ///
    /// If the text is empty.
    pub fn cut_answer_to(&self, text: impl AsRef<[u8]>) {
        let text = checked(text.as_ref());
        self.tell(move |hub| *hub.faults.answer_to.borrow_mut() = Some(text));
    }

    /// Resets the connection on which a client next sends this text, and passes nothing of it to the server. Happens once.
    ///
    /// The client gets the same `ECONNRESET` as from [`cut_answer_to`](Proxy::cut_answer_to), and nothing is done. The text is
    /// searched in the same way. What the client sent ahead of it in the same write is lost as well.
    ///
    /// # Panics
    ///
    /// If the text is empty.
    pub fn cut_before(&self, text: impl AsRef<[u8]>) {
        let text = checked(text.as_ref());
        self.tell(move |hub| *hub.faults.before.borrow_mut() = Some(text));
    }

    /// Leads new connections to the server of another address from now on, as a host name or a load balancer does after a
    /// failover.
    ///
    /// Open connections stay at their server until they are [`reset`](Proxy::reset). Only the place in the address counts:
    /// database, role and password are those that the client sends. [`heal`](Proxy::heal) does not lead back.
    ///
    /// # Errors
    ///
    /// [`Error::Address`]; [`Error::Proxy`] on systems other than Linux, if that server is reached by a Unix socket.
    pub fn lead_to(&self, address: &str) -> Result<(), Error> {
        let target = target(&options(address)?)?;
        self.tell(|hub| hub.lead_to(target));
        Ok(())
    }

    /// Resets new connections at once, until [`heal`](Proxy::heal). Open ones are untouched.
    ///
    /// The client gets `ECONNRESET` from its first read or write, or from connecting.
    pub fn refuse(&self) {
        self.tell(|hub| hub.door = Door::Refusing);
    }

    /// Ends all faults: no latency, no pending cut, new connections work, frozen ones go on. Connections that lost bytes or
    /// their server's side are reset, since they cannot continue.
    pub fn heal(&self) {
        self.tell(|hub| {
            hub.reset(|link| link.broken.get());
            hub.set_open(Mode::Passing);
            hub.door = Door::Open(Mode::Passing);
            hub.clear_faults();
        });
    }

    /// How many connections clients have open through the proxy, including those in a fault.
    ///
    /// The proxy sees a client's close a moment later; in a black hole, or frozen, not at all.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.tell(|hub| hub.open())
    }

    /// How many connections it has accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.tell(|hub| hub.accepted)
    }

    /// How many connections it has reset at once so far: because of [`refuse`](Proxy::refuse), or because they came from
    /// another OS user.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.tell(|hub| hub.refused)
    }

    /// Runs `what` in the proxy's thread, and waits for the result.
    fn tell<T: Send + 'static>(&self, what: impl FnOnce(&mut Hub) -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::sync_channel(1);
        let order: Order = Box::new(move |hub| {
            // The caller may have given up waiting.
            let _ = answer.send(what(hub));
        });
        let sent = self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok());
        assert!(sent, "the proxy's thread has ended");
        answered.recv_timeout(PATIENCE).expect("the proxy's thread answers")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The thread ends when the last sender is gone.
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            // A test has no other place for this message.
            eprintln!("db-testkit: the thread of a proxy panicked");
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the address, which may hold a password.
        f.debug_struct("Proxy").field("port", &self.url.port()).finish_non_exhaustive()
    }
}

fn options(address: &str) -> Result<PgConnectOptions, Error> {
    PgConnectOptions::from_str(address).map_err(|error| Error::Address { why: error.to_string() })
}

/// The server's place, if the proxy can check its clients' users.
fn target(options: &PgConnectOptions) -> Result<Target, Error> {
    let target = Target::of(options);
    if matches!(target, Target::Unix(_)) && !peer::KNOWN {
        let source = std::io::ErrorKind::Unsupported.into();
        return Err(Error::Proxy { action: "check which user connects", source });
    }
    Ok(target)
}

/// Listens on the loopback address only.
fn listen() -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let us = listener.local_addr()?;
    Ok((listener, us))
}

/// The body of the proxy's thread.
fn serve(listener: TcpListener, us: SocketAddr, target: Target, orders: UnboundedReceiver<Order>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the operating system grants a poll descriptor");
    runtime.block_on(async {
        let second = listener.try_clone().expect("the operating system grants a descriptor");
        let listener = tokio::net::TcpListener::from_std(listener).expect("the listener can be polled");
        // All connections are in one task, so there is no other task to yield to.
        tokio::task::unconstrained(Hub::new(second, us, target).run(listener, orders)).await;
    });
    // Without waiting for a name lookup that is running.
    runtime.shutdown_background();
}

fn checked(text: &[u8]) -> Vec<u8> {
    assert!(!text.is_empty(), "an empty text is in every message");
    text.to_vec()
}
