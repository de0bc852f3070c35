//! Limits of connections, and of the time that a client may keep one waiting.
//!
//! A connection costs a file descriptor, of which a process has few. So there is a limit, half of `ulimit -n`. At the limit,
//! the connection that has been idle longest is closed for a new one. A connection with a running request is never closed; if
//! all have one, the new one is. A client of another machine may have a quarter of the limit.
//!
//! A client has [`HEAD`] to send each request's head, and [`STALL`] to take some bytes of an answer.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::sys::resource::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::serve::holding::holding;

/// How long a client may take for a request's head; also how long a connection may be idle.
const HEAD: Duration = Duration::from_secs(10);
/// How long a client may take no bytes of its answer.
const STALL: Duration = Duration::from_mins(1);
/// The same while the server closes, when idle connections are closed at once.
const LAST_STALL: Duration = Duration::from_secs(1);
/// How long no connection is accepted after an error of accepting.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the same warning is not repeated.
const QUIET: Duration = Duration::from_mins(1);

/// Limits of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    connections: usize,
    per_client: usize,
    /// The most endless answers; the remaining connections are for other requests.
    pub(crate) streams: usize,
}

impl Limits {
    /// Derives the limits from the process's limit of open files.
    pub(crate) fn find() -> Self {
        let files = match getrlimit(Resource::RLIMIT_NOFILE) {
            Ok((files, _)) => files,
            Err(error) => {
                tracing::warn!(%error, "cannot read the limit of open files; using 1024");
                1024
            }
        };
        Self::of(files)
    }

    fn of(files: u64) -> Self {
        let connections = usize::try_from(files / 2).unwrap_or(usize::MAX).clamp(8, 10_000);
        Self { connections, per_client: (connections / 4).max(8), streams: connections - connections / 4 }
    }
}

/// Serves until `closing` is cancelled, and then until running requests have their answers. Dropping the future closes all
/// connections.
pub(crate) async fn serve(listener: TcpListener, router: Router, limits: Limits, closing: CancellationToken) {
    let open = Arc::new(Open { limits, places: Mutex::default(), left: Notify::new() });
    let mut tasks = JoinSet::new();
    let mut full = Said::default();
    let mut failed = Said::default();
    loop {
        let accepted = tokio::select! {
            () = closing.cancelled() => break,
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection's task panicked");
                }
                continue;
            }
            accepted = async {
                open.room_is_made().await;
                listener.accept().await
            } => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                let (place, is_full) = open.enter(from);
                if is_full && full.is_new() {
                    tracing::warn!(
                        connections = limits.connections,
                        per_client = limits.per_client,
                        "the limit of connections is reached (half of ulimit -n, a quarter of that for one client): \
                         those without a request are closed for new ones"
                    );
                }
                if let Some(place) = place {
                    tasks.spawn(connection(stream, from, router.clone(), place, closing.clone()));
                }
            }
            // The client has gone already.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::ConnectionRefused
                ) => {}
            Err(error) => {
                if failed.is_new() {
                    tracing::warn!(%error, "cannot accept connections; retrying");
                }
                open.make_room(|_| true);
                sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a connection's task panicked");
        }
    }
}

/// When a warning was last logged.
#[derive(Default)]
struct Said(Option<Instant>);

impl Said {
    fn is_new(&mut self) -> bool {
        let is_new = self.0.is_none_or(|last| last.elapsed() >= QUIET);
        // A lasting condition is not a new one either.
        self.0 = Some(Instant::now());
        is_new
    }
}

async fn connection(
    stream: TcpStream,
    from: SocketAddr,
    router: Router,
    place: Place,
    closing: CancellationToken,
) {
    stream.set_nodelay(true).ok();
    let io = TokioIo::new(Patient { stream, closing: closing.clone(), since: None, sleep: None });
    let answering = TowerToHyperService::new(router);
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(from));
        let busy = place.busy();
        let answer = answering.call(request);
        async move {
            let answer: Response<Body> = answer.await?;
            Ok::<_, std::convert::Infallible>(answer.map(|body| holding(body, busy)))
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(io, service);
    let mut served = pin!(served);
    // Errors here are clients that go away or misbehave, and are not logged.
    tokio::select! {
        _ = served.as_mut() => return,
        () = place.taken.cancelled() => return,
        () = closing.cancelled() => served.as_mut().graceful_shutdown(),
    }
    let idle = async {
        loop {
            sleep(LAST_STALL).await;
            if place.is_idle() {
                break;
            }
        }
    };
    tokio::select! {
        _ = served => {}
        () = place.taken.cancelled() => {}
        () = idle => {}
    }
}

/// Open connections, in order of their acceptance.
struct Open {
    limits: Limits,
    places: Mutex<Places>,
    /// Notified when a connection that had to make room has closed.
    left: Notify,
}

#[derive(Default)]
struct Places {
    next: u64,
    /// Connections that have to make room, and are not closed yet.
    leaving: usize,
    held: HashMap<u64, Held>,
}

struct Held {
    client: Option<IpAddr>,
    /// Since when it is idle; `None` during a request.
    idle_since: Option<Instant>,
    taken: CancellationToken,
}

impl Open {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection, if there is one or can be made, and whether the limit was reached.
    fn enter(self: &Arc<Self>, from: SocketAddr) -> (Option<Place>, bool) {
        let client = client(from.ip());
        let is_same = |held: &Held| held.client == client;
        let (of_client, all) = {
            let held = &self.places().held;
            (held.values().filter(|held| is_same(held)).count(), held.len())
        };
        let is_over_share = client.is_some() && of_client >= self.limits.per_client;
        let is_full = is_over_share || all >= self.limits.connections;
        let has_room =
            if is_over_share { self.make_room(is_same) } else { !is_full || self.make_room(|_| true) };
        if !has_room {
            return (None, true);
        }
        let taken = CancellationToken::new();
        let mut places = self.places();
        let number = places.next;
        places.next += 1;
        places.held.insert(number, Held { client, idle_since: Some(Instant::now()), taken: taken.clone() });
        (Some(Place { number, taken, open: Arc::clone(self) }), is_full)
    }

    /// Closes the connection that has been idle longest, among those that `may` be closed.
    fn make_room(&self, may: impl Fn(&Held) -> bool) -> bool {
        let mut places = self.places();
        let waiting = places.held.iter().filter(|(_, held)| may(held));
        let longest = waiting.filter_map(|(number, held)| Some((held.idle_since?, *number))).min();
        let held = longest.and_then(|(_, number)| places.held.remove(&number));
        if let Some(held) = &held {
            places.leaving += 1;
            held.taken.cancel();
        }
        held.is_some()
    }

    /// Waits until the connections that had to make room have closed, since accepting is quicker.
    async fn room_is_made(&self) {
        while self.places().leaving > 0 {
            self.left.notified().await;
        }
    }

    fn set_idle(&self, number: u64, idle_since: Option<Instant>) {
        if let Some(held) = self.places().held.get_mut(&number) {
            held.idle_since = idle_since;
        }
    }
}

/// A client for its share of the limit: an address, or a network prefix as providers give it to one customer. `None` for this
/// machine, since all users of a proxy come from there.
fn client(address: IpAddr) -> Option<IpAddr> {
    let address = address.to_canonical();
    match address {
        _ if address.is_loopback() => None,
        IpAddr::V4(_) => Some(address),
        IpAddr::V6(address) => Some(IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into())),
    }
}

/// One connection's place, released on drop.
struct Place {
    number: u64,
    /// Cancelled when another connection gets the place.
    taken: CancellationToken,
    open: Arc<Open>,
}

impl Place {
    fn busy(&self) -> Busy {
        self.open.set_idle(self.number, None);
        Busy { number: self.number, open: Arc::clone(&self.open) }
    }

    fn is_idle(&self) -> bool {
        self.open.places().held.get(&self.number).is_none_or(|held| held.idle_since.is_some())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.open.places();
        if places.held.remove(&self.number).is_none() {
            places.leaving -= 1;
            self.open.left.notify_one();
        }
    }
}

/// A running request, until its answer was sent.
struct Busy {
    number: u64,
    open: Arc<Open>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.open.set_idle(self.number, Some(Instant::now()));
    }
}

/// A socket whose client must take some bytes of an answer within a time.
struct Patient {
    stream: TcpStream,
    closing: CancellationToken,
    /// Since when the client has taken nothing.
    since: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn patience<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.since = None;
            return written;
        }
        let limit = if self.closing.is_cancelled() { LAST_STALL } else { STALL };
        let deadline = *self.since.get_or_insert_with(Instant::now) + limit;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes no bytes of its answer")))
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.patience(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.patience(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(connections: usize, per_client: usize) -> Arc<Open> {
        let limits = Limits { connections, per_client, streams: 1 };
        Arc::new(Open { limits, places: Mutex::default(), left: Notify::new() })
    }

    #[test]
    fn limits_follow_the_limit_of_files() {
        assert_eq!(Limits::of(200), Limits { connections: 100, per_client: 25, streams: 75 });
        assert_eq!(Limits::of(3), Limits { connections: 8, per_client: 8, streams: 6 });
        assert_eq!(Limits::of(u64::MAX).connections, 10_000);
    }

    #[test]
    fn at_the_limit_the_longest_idle_goes_and_none_that_has_a_request() {
        let open = open(3, 3);
        let here = "127.0.0.1:1".parse().expect("an address");
        let places: Vec<Place> = (0..3).filter_map(|_| open.enter(here).0).collect();
        let _busy = places[0].busy();

        let (fourth, is_full) = open.enter(here);

        assert!(fourth.is_some() && is_full);
        let taken: Vec<bool> = places.iter().map(|place| place.taken.is_cancelled()).collect();
        assert_eq!(taken, [false, true, false]);
        let _all_busy = (places[2].busy(), fourth.as_ref().map(Place::busy));
        assert!(open.enter(here).0.is_none(), "each has a request");

        drop(fourth);
        assert!(matches!(open.enter(here), (Some(_), false)));
    }

    #[test]
    fn a_client_elsewhere_has_its_share_and_this_machine_has_all() {
        let open = open(10, 2);
        let enter = |from: &str| open.enter(from.parse().expect("an address")).0;
        let held: Vec<Place> = ["[2001:db8::1]:1", "[2001:db8::2]:1"].into_iter().filter_map(enter).collect();
        let _busy: Vec<Busy> = held.iter().map(Place::busy).collect();

        assert!(enter("[2001:db8::3]:1").is_none(), "of the same network");
        let others = [
            "[2001:db8:0:1::1]:1",
            "10.0.0.1:1",
            "[::ffff:10.0.0.1]:1",
            "[::1]:1",
            "127.0.0.1:1",
            "127.0.0.1:2",
        ];
        let others: Vec<Place> = others.into_iter().filter_map(enter).collect();
        assert_eq!(others.len(), 6);
        let _busy: Vec<Busy> = others.iter().map(Place::busy).collect();
        assert!(enter("10.0.0.1:2").is_none(), "a mapped address is the same one");
    }
}
