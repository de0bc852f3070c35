//! The task that cancels statements and ends sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{sleep_until, timeout};

use super::CLOSE_LIMIT;
use super::request::{Action, Order, Request, signal};
use crate::cancels::Cancel;
use crate::class::{self, Verdict};
use crate::connect::with_tls_fallback;
use crate::keepalive::with_keepalive;
use crate::pool::PING_LIMIT;
use crate::pool::dial::identity;
use crate::redact::redacted;
use crate::tracker::Session;
use crate::{Backoff, Config};

/// The limit for the answer to a statement, from when it was sent.
const LIMIT: Duration = Duration::from_secs(1);

/// The limit of one attempt to connect, unless the address has a `connect_timeout`.
const DIAL_LIMIT: Duration = Duration::from_secs(3);

/// The first pause between two attempts to connect while requests wait.
const MIN_PAUSE: Duration = Duration::from_millis(10);

/// The longest pause between two attempts to connect while requests wait.
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// After this time without an answer, the connection is pinged before it is used: the fault that broke a pool's link may have broken
/// this link, too. A cancel request must not be used to find out, because an unanswered request may be carried out later, on
/// another caller's statement.
const SILENT: Duration = Duration::from_secs(1);

/// The most requests that one statement carries.
const BATCH: usize = 256;

/// The task of a pool's canceller.
pub(super) struct Task {
    pool: String,
    config: Config,
    options: PgConnectOptions,
    dial_limit: Duration,
    /// The connection is pinged this often, and opened again when it does not answer.
    check_every: Duration,
    orders: UnboundedReceiver<Order>,
    /// The requests to send next: at most two for each session.
    waiting: Vec<Request>,
    link: Option<Link>,
    /// The session of the last lost link. The server may not have noticed the loss.
    lost_session: Option<Arc<Session>>,
    is_open: Arc<AtomicBool>,
    /// Whether the connection stays open while there are no requests.
    keeps_open: bool,
    /// The pool is closed: a dial of the pool that ends later does not reopen the connection.
    is_closed: bool,
    /// When to ping the connection next.
    check_at: Option<Instant>,
    /// The backoff of failed attempts to connect, and when the next attempt starts.
    retries: Option<(Backoff, Instant)>,
    /// Whether a failure was logged since the connection last worked.
    is_failing: bool,
}

struct Link {
    connection: PgConnection,
    session: Arc<Session>,
    /// When the server last answered; `None` if the link may be lost.
    seen: Option<Instant>,
}

impl Task {
    pub(super) fn new(
        config: &Config,
        pool: &str,
        keepalive: Duration,
        orders: UnboundedReceiver<Order>,
        is_open: Arc<AtomicBool>,
    ) -> Self {
        let config = config.clone().with_application_name(&format!("{pool} control"));
        let options = config.as_sqlx();
        // The connection may idle for as long as no statement is abandoned. The setting is in PostgreSQL's manual, chapter 20.11.1.
        let options = with_keepalive(options.disable_statement_logging(), keepalive)
            .options([("idle_session_timeout", "0")]);
        Self {
            pool: pool.to_owned(),
            options,
            dial_limit: config.connect_timeout().unwrap_or(DIAL_LIMIT),
            config,
            check_every: keepalive.max(SILENT),
            orders,
            waiting: Vec::new(),
            link: None,
            lost_session: None,
            is_open,
            keeps_open: false,
            is_closed: false,
            check_at: None,
            retries: None,
            is_failing: false,
        }
    }

    pub(super) async fn run(mut self) {
        let mut orders = Vec::new();
        loop {
            let wakes = self.wakes_at();
            tokio::select! {
                biased;
                received = self.orders.recv_many(&mut orders, BATCH) => if received == 0 { break },
                () = sleep_until(wakes.unwrap_or_else(Instant::now).into()), if wakes.is_some() => {}
            }
            // Dropping a sender answers its caller.
            let mut closed = Vec::new();
            for order in orders.drain(..) {
                match order {
                    Order::Open => {
                        self.keeps_open = !self.is_closed;
                        self.check_at = Some(Instant::now());
                    }
                    Order::Check { reopens } => {
                        if let Some(link) = &mut self.link {
                            link.seen = None;
                        }
                        self.check().await;
                        if reopens {
                            self.check_at = Some(Instant::now());
                        }
                    }
                    Order::Send(request) => self.waiting.push(request),
                    Order::Close(done) => {
                        self.is_closed = true;
                        self.keeps_open = false;
                        closed.push(done);
                    }
                }
            }
            self.serve().await;
            if !self.keeps_open && self.waiting.is_empty() {
                self.close_link().await;
            }
        }
        // The pool is dropped. No caller waits for the remaining requests, so they are tried once.
        self.retries = None;
        self.serve().await;
        self.close_link().await;
    }

    /// When the task has work without an order.
    fn wakes_at(&self) -> Option<Instant> {
        if !self.waiting.is_empty() {
            let retry = self.retries.as_ref().map(|(_, at)| *at);
            return Some(retry.unwrap_or_else(Instant::now));
        }
        self.check_at.filter(|_| self.keeps_open)
    }

    /// Sends the waiting requests, and pings the connection when that is due.
    async fn serve(&mut self) {
        self.waiting.retain(Request::is_wanted);
        let now = Instant::now();
        let is_due = self.keeps_open && self.check_at.is_some_and(|at| at <= now);
        if !is_due && self.waiting.is_empty() {
            return;
        }
        if is_due {
            self.check_at = now.checked_add(self.check_every);
        } else if self.retries.as_ref().is_some_and(|(_, at)| now < *at) {
            return;
        }
        if !self.connect().await || self.waiting.is_empty() {
            return;
        }
        let size = self.waiting.len().min(BATCH);
        let mut batch: Vec<_> = self.waiting.drain(..size).collect();
        batch.retain_mut(Request::mark_sent);
        if !batch.is_empty() {
            self.send(batch).await;
        }
    }

    /// Pings the connection if it was silent for [`SILENT`] or its link may be lost. Drops it if it does not answer.
    async fn check(&mut self) {
        let Some(link) = &mut self.link else { return };
        if link.seen.is_some_and(|seen| seen.elapsed() < SILENT) {
            return;
        }
        if matches!(timeout(PING_LIMIT, link.connection.ping()).await, Ok(Ok(()))) {
            link.seen = Some(Instant::now());
        } else {
            self.drop_link();
        }
    }

    /// Drops a lost connection. The pool's next dial, or the next request, opens another.
    fn drop_link(&mut self) {
        if let Some(link) = self.link.take() {
            self.lost_session = Some(link.session);
        }
        self.is_open.store(false, Ordering::Relaxed);
    }

    /// Connects unless the present connection answers. Returns whether there is a connection.
    async fn connect(&mut self) -> bool {
        self.check().await;
        if self.link.is_some() {
            return true;
        }
        let dialled = timeout(self.dial_limit, dial(&self.config, self.options.clone())).await;
        match dialled.unwrap_or_else(|_| Err(timed_out())) {
            Ok((connection, session)) => {
                let session = Arc::new(session);
                self.link = Some(Link { connection, session, seen: Some(Instant::now()) });
                if let Some(lost) = self.lost_session.take() {
                    self.waiting.push(Request::new(&lost, Action::Terminate(None)));
                }
                self.is_open.store(true, Ordering::Relaxed);
                self.retries = None;
                self.is_failing = false;
                true
            }
            Err(error) => {
                self.drop_link();
                self.log_failure(&error, "no connection for cancel requests");
                let mut backoff = self
                    .retries
                    .take()
                    .map_or_else(|| Backoff::new(MIN_PAUSE, MAX_PAUSE), |(backoff, _)| backoff);
                let pause = backoff.pause();
                self.retries = Some((backoff, Instant::now() + pause));
                false
            }
        }
    }

    /// Sends these requests in one statement.
    async fn send(&mut self, batch: Vec<Request>) {
        let Some(link) = &mut self.link else { return };
        let asked = timeout(LIMIT, signal(&mut link.connection, &batch)).await;
        match asked.unwrap_or_else(|_| Err(timed_out())) {
            Ok(exists) => {
                link.seen = Some(Instant::now());
                for (request, exists) in batch.into_iter().zip(exists) {
                    request.answer(if exists { Cancel::Answered } else { Cancel::Gone });
                }
            }
            Err(error @ sqlx::Error::Database(_))
                if Verdict::of_statement(&error).link < class::Link::Closed =>
            {
                link.seen = Some(Instant::now());
                self.log_failure(&error, "the server refused to cancel statements");
                for request in batch {
                    request.answer(Cancel::Refused);
                }
            }
            Err(error) => {
                self.drop_link();
                self.log_failure(&error, "a cancel request was not answered");
                // Dropping a request updates its session. Ending a session is safe to try again.
                let ends = |request: &Request| matches!(request.action, Action::Terminate(_));
                self.waiting.extend(batch.into_iter().filter(ends));
            }
        }
    }

    /// Logs a failure: the first as a warning, later ones at `debug` until a connection works again.
    fn log_failure(&mut self, error: &sqlx::Error, what: &str) {
        let (pool, error) = (&self.pool, redacted(error));
        if std::mem::replace(&mut self.is_failing, true) {
            tracing::debug!(pool, error, "{what}");
        } else {
            tracing::warn!(pool, error, "{what}");
        }
    }

    async fn close_link(&mut self) {
        self.is_open.store(false, Ordering::Relaxed);
        if let Some(link) = self.link.take() {
            // The peer may be dead, hence the limit.
            let _: Result<_, _> = timeout(CLOSE_LIMIT, link.connection.close()).await;
        }
    }
}

/// Connects, and sends a statement without requests to prepare it.
async fn dial(config: &Config, options: PgConnectOptions) -> Result<(PgConnection, Session), sqlx::Error> {
    let mut connection = with_tls_fallback(config, options).await?;
    let (session, _) = identity(&mut connection).await?;
    signal(&mut connection, &[]).await?;
    Ok((connection, session))
}

fn timed_out() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}
