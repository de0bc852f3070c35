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
use link::Mode;
use wire::Target;

/// A proxy in front of a test's database that makes the network fail, in each of the ways that networks do.
///
/// Whatever shall meet the faults connects by [`url`](Proxy::url) or [`options`](Proxy::options); the test itself looks at
/// the database past the proxy, with [`TestDb::pool`] and [`TestDb::sessions`].
///
/// **When a method returns, its fault is in effect**, for every connection that was open at that moment: no byte passes
/// the proxy after it that should not. What has passed before may still lie in the receiving side's own buffers. Faults are
/// independent of each other and each lasts until [`heal`](Proxy::heal), but for those that happen once.
///
/// The methods block for some microseconds and need no runtime: the proxy runs in a thread of its own, so it goes on while
/// a test blocks. Dropping it closes all of its connections.
///
/// It listens on `127.0.0.1`, and lets in processes of this OS user only: to a server of ours it is itself the user who
/// connects, so whoever got through would be a superuser.
///
/// ```
/// use db_testkit::{Proxy, TestDb};
/// use sqlx::{ConnectOptions, Connection};
///
/// #[db_testkit::test]
/// async fn a_reset_is_noticed(db: TestDb) -> Result<(), Box<dyn std::error::Error>> {
///     let proxy = Proxy::start(&db)?;
///     let mut connection = proxy.options().connect().await?;
///
///     proxy.reset();
///
///     assert!(matches!(connection.ping().await, Err(sqlx::Error::Io(_))));
///     proxy.options().connect().await?.ping().await?;
///     assert_eq!(proxy.accepted(), 2);
///     Ok(())
/// }
/// ```
pub struct Proxy {
    url: Url,
    options: PgConnectOptions,
    orders: Option<UnboundedSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// A proxy to this database.
    ///
    /// # Errors
    ///
    /// [`Error::Proxy`] when the operating system does not grant a port or a thread, or, on systems other than Linux, when
    /// the server is reached by a Unix socket: nobody could tell there who connects.
    pub fn start(db: &TestDb) -> Result<Proxy, Error> {
        Proxy::to(&db.direct_url(), &db.options())
    }

    /// A proxy to this server. Its own address is that of the database in which others are made; see
    /// [`url_of`](Proxy::url_of).
    ///
    /// # Errors
    ///
    /// As [`start`](Proxy::start) has them.
    pub fn to_server(server: &TestServer) -> Result<Proxy, Error> {
        let options = server.maintenance()?;
        let database = options.get_database().unwrap_or_else(|| options.get_username()).to_owned();
        Proxy::to(&server.url_of(&database), &options)
    }

    /// A proxy to the server of this address, such as one that the test has started by itself.
    ///
    /// # Errors
    ///
    /// [`Error::Address`], and as [`start`](Proxy::start) has them.
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

    /// The address of the database through the proxy. Like the database's own, it may contain a password.
    ///
    /// To a Unix socket it says `sslmode=disable`. To a server that is reached by TCP the mode stays as it was, and encrypted
    /// connections go through; only [`cut_answer_to`](Proxy::cut_answer_to) and [`cut_before`](Proxy::cut_before) cannot
    /// look inside. `verify-full` fails, since the certificate is not that of `127.0.0.1`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.to_string()
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

    /// Delays each chunk of bytes by so much, in each direction: an answer takes twice that longer. It is latency and no
    /// limit to the bandwidth: chunks do not wait for each other.
    ///
    /// What is on its way already arrives when it would have. Up to 4 MiB are on the way in each direction of a connection.
    pub fn latency(&self, each_way: Duration) {
        self.tell(move |hub| hub.faults.latency.set(each_way));
    }

    /// Resets every connection that is open, and closes the server's side of it. New connections work.
    ///
    /// The client gets `ECONNRESET` from its next use of the connection, without waiting, or from the one that it is in. The
    /// server sees an end of file, when it next reads: a statement that runs there runs on, and its transaction is rolled
    /// back after it.
    pub fn reset(&self) {
        self.tell(|hub| hub.reset(|_| true));
    }

    /// Lets all bytes vanish, in both directions, on open and on new connections, until [`heal`](Proxy::heal).
    ///
    /// The client can connect and send as much as it likes; nothing answers, nothing fails. That a side closes its connection
    /// vanishes, too: the server's session stays. New connections are accepted and do not get to the server.
    ///
    /// `heal` resets the connections that lost something; those that were idle all the time go on.
    pub fn black_hole(&self) {
        self.tell(|hub| {
            hub.set_open(Mode::BlackHole);
            hub.door = Door::Open(Mode::BlackHole);
        });
    }

    /// Stops the bytes on open and on new connections, until [`thaw`](Proxy::thaw) or [`heal`](Proxy::heal).
    ///
    /// The client can connect, and gets no answer. Nothing is lost: after the thaw the connections go on where they were,
    /// and what was sent meanwhile arrives.
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

    /// Lets frozen connections go on. Nothing else is healed.
    pub fn thaw(&self) {
        self.tell(|hub| {
            hub.thaw();
            if hub.door == Door::Open(Mode::Frozen) {
                hub.door = Door::Open(Mode::Passing);
            }
        });
    }

    /// Closes the server's side of every open connection, and keeps the client's open and silent: the server has forgotten
    /// them, and nothing tells the client. New connections work.
    ///
    /// The client can send as much as it likes, and never gets an answer. [`heal`](Proxy::heal) resets it.
    pub fn half_open(&self) {
        self.tell(Hub::forget);
    }

    /// Lets so many more bytes from the server through, counted over all connections from now, and resets the connection
    /// that carried the last one. Once.
    ///
    /// The client gets those bytes, and `ECONNRESET` after them. With 0 the connection is reset in place of the next byte. A
    /// second call replaces the first.
    pub fn cut_after(&self, bytes: u64) {
        self.tell(move |hub| hub.faults.budget_to_client.set(Some(bytes)));
    }

    /// Lets so many more bytes from the clients through, as [`cut_after`](Proxy::cut_after) does with those from the server.
    ///
    /// The client gets `ECONNRESET`, and the server sees the end of the connection after the last byte, likely within a message.
    pub fn cut_after_from_client(&self, bytes: u64) {
        self.tell(move |hub| hub.faults.budget_to_server.set(Some(bytes)));
    }

    /// Lets the next statement with this text run, and resets the client's connection in place of the answer. Once.
    ///
    /// When the client gets its `ECONNRESET`, the server has answered: what was to be done is done, and the client cannot
    /// know. So a `COMMIT` becomes ambiguous.
    ///
    /// The text is looked for, as bytes and within one message, in whatever clients send: statements, the parameters bound
    /// to them, names. If it is found where a statement is only prepared, then it is the next statement to be completed on
    /// that connection whose answer is cut. Rows pass; the message that says that the statement is complete, or has failed,
    /// is the first that does not. A second call replaces the first.
    ///
    /// # Panics
    ///
    /// When the text is empty.
    pub fn cut_answer_to(&self, text: impl AsRef<[u8]>) {
        let text = checked(text.as_ref());
        self.tell(move |hub| *hub.faults.answer_to.borrow_mut() = Some(text));
    }

    /// Resets the connection on which a client sends this text next, and passes nothing of it to the server. Once.
    ///
    /// The client gets the same `ECONNRESET` as from [`cut_answer_to`](Proxy::cut_answer_to), and nothing is done. The text is
    /// looked for in the same way. What the client sent along with it, ahead of it, is lost as well.
    ///
    /// # Panics
    ///
    /// When the text is empty.
    pub fn cut_before(&self, text: impl AsRef<[u8]>) {
        let text = checked(text.as_ref());
        self.tell(move |hub| *hub.faults.before.borrow_mut() = Some(text));
    }

    /// Leads new connections to the server of another address from now on: as a name, or a load balancer, that leads to a standby
    /// once that has become the primary.
    ///
    /// Connections that are open stay where they are, until they are [`reset`](Proxy::reset). Of the address, only the place
    /// counts: database, role and password are what the client says, as at the first server. [`heal`](Proxy::heal) leads nowhere
    /// else.
    ///
    /// # Errors
    ///
    /// [`Error::Address`]; [`Error::Proxy`] on systems other than Linux, when that server is reached by a Unix socket.
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

    /// Lets everything pass again: no latency, no cut that has not happened yet, new connections, frozen ones. Connections
    /// that lost bytes, or their server's side, are reset: nothing could continue them.
    pub fn heal(&self) {
        self.tell(|hub| {
            hub.reset(|link| link.broken.get());
            hub.set_open(Mode::Passing);
            hub.door = Door::Open(Mode::Passing);
            hub.calm();
        });
    }

    /// How many connections clients have open through the proxy, those in a fault included.
    ///
    /// The proxy learns a moment later that a client has closed one; in a black hole, or frozen, not at all.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.tell(|hub| hub.open())
    }

    /// How many connections it has let in so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.tell(|hub| hub.accepted)
    }

    /// How many connections it has turned away so far: because it was told to [`refuse`](Proxy::refuse), or since they came
    /// from another OS user.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.tell(|hub| hub.refused)
    }

    /// Has something done in the proxy's thread, and waits for that.
    fn tell<T: Send + 'static>(&self, what: impl FnOnce(&mut Hub) -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::sync_channel(1);
        let order: Order = Box::new(move |hub| {
            // Nobody waits any more if it took too long.
            let _ = answer.send(what(hub));
        });
        let sent = self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok());
        assert!(sent, "the proxy's thread has ended");
        answered.recv_timeout(PATIENCE).expect("the proxy's thread answers")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // With the last who could give orders, it ends.
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            // A test has no other place to hear of it.
            eprintln!("db-testkit: the thread of a proxy panicked");
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the address: it may hold a password.
        f.debug_struct("Proxy").field("port", &self.url.port()).finish_non_exhaustive()
    }
}

fn options(address: &str) -> Result<PgConnectOptions, Error> {
    PgConnectOptions::from_str(address).map_err(|error| Error::Address { why: error.to_string() })
}

/// Where a server is, if anybody may be led there.
fn target(options: &PgConnectOptions) -> Result<Target, Error> {
    let target = Target::of(options);
    if matches!(target, Target::Unix(_)) && !peer::KNOWN {
        let source = std::io::ErrorKind::Unsupported.into();
        return Err(Error::Proxy { action: "tell who connects", source });
    }
    Ok(target)
}

/// Anybody on this machine can get to it, but not from elsewhere.
fn listen() -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let us = listener.local_addr()?;
    Ok((listener, us))
}

/// The proxy's thread.
fn serve(listener: TcpListener, us: SocketAddr, target: Target, orders: UnboundedReceiver<Order>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the operating system grants a poll descriptor");
    runtime.block_on(async {
        let second = listener.try_clone().expect("the operating system grants a descriptor");
        let listener = tokio::net::TcpListener::from_std(listener).expect("the listener can be polled");
        // Its connections are one task: nobody else is there to yield to.
        tokio::task::unconstrained(Hub::new(second, us, target).run(listener, orders)).await;
    });
    // Not waiting for a name that is being looked up.
    runtime.shutdown_background();
}

fn checked(text: &[u8]) -> Vec<u8> {
    assert!(!text.is_empty(), "an empty text is in every message");
    text.to_vec()
}
