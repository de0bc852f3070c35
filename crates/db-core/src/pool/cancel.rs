//! Cancelling statements and ending sessions from another connection.
//!
//! The protocol's cancel request needs a secret that sqlx does not give out, so `pg_cancel_backend` is called instead (PostgreSQL's
//! manual, chapter 9.27.2 "Server Signaling Functions"). Each pool has one task for that, with a connection of its own. Requests that
//! arrive while the task waits for an answer go into its next statement together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Row};
use tokio::runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep_until, timeout};

use super::PING_LIMIT;
use super::dial::identity;
use crate::class::{self, Verdict};
use crate::connect::each_way;
use crate::error::said;
use crate::keepalive::with_keepalive;
use crate::tracker::Session;
use crate::{Backoff, Config};

/// The task waits this long for the answer to a statement, from when it was sent.
const LIMIT: Duration = Duration::from_secs(1);

/// The limit of one attempt to connect, unless the address has a `connect_timeout`.
const DIAL_LIMIT: Duration = Duration::from_secs(3);

/// The first pause between two attempts to connect while requests wait.
const MIN_PAUSE: Duration = Duration::from_millis(10);

/// The longest pause between two attempts to connect while requests wait.
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// After this long without an answer, the connection is pinged before it is used: what broke the link of a statement may have broken
/// this link, too. The request itself cannot find that out, because a request without an answer may be carried out later, on
/// another caller's statement.
const SILENT: Duration = Duration::from_secs(1);

/// A caller waits this long for a session to be ended.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Closing the connection takes no longer than this.
const CLOSE_LIMIT: Duration = Duration::from_millis(300);

/// The most requests that one statement carries.
const BATCH: usize = 256;

/// Signals the sessions that still exist, and answers with their numbers. The start of the process is compared, too: the session may be
/// gone, and its process id another client's by now. Functions have their schema, so that no search path puts others in their place.
const SIGNAL: &str = "
    select asked.n, case when asked.ends
      then pg_catalog.pg_terminate_backend(there.pid) else pg_catalog.pg_cancel_backend(there.pid) end
    from rows from (pg_catalog.unnest($1::int4[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::bool[]))
        with ordinality as asked (pid, began, ends, n),
      pg_catalog.pg_stat_get_activity(asked.pid) as there
    where there.backend_start = asked.began::timestamptz";

/// The state of a session's request to cancel. The session holds it, because the caller that asked may be dropped. While a request is
/// under way, the session must not be used; after the answer, one more round trip is needed first.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cancel {
    /// No request is under way, and no earlier request can hit a later statement.
    #[default]
    None,
    /// A request waits to be sent. The request before may still need its round trip.
    Queued { after_another: bool },
    /// A request was sent.
    Sent,
    /// The server has signalled the session.
    Answered,
    /// The server refused to signal the session.
    Refused,
    /// The session no longer exists at the server.
    Gone,
    /// The request was sent, and its answer never came: the server may carry it out at any time.
    Unanswered,
}

/// The requests to cancel a session's statements. No two of them are under way at the same time.
#[derive(Debug)]
pub(crate) struct Cancels(watch::Sender<Cancel>);

impl Cancels {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Cancel::None))
    }

    /// Changes the state if `next` knows a next one. Returns whether it did.
    fn step(&self, next: impl FnOnce(Cancel) -> Option<Cancel>) -> bool {
        self.0.send_if_modified(|cancel| match next(*cancel) {
            Some(next) => {
                *cancel = next;
                true
            }
            None => false,
        })
    }

    /// Returns whether a new request has to be sent.
    fn queue(&self) -> bool {
        self.step(|cancel| match cancel {
            Cancel::None => Some(Cancel::Queued { after_another: false }),
            Cancel::Answered | Cancel::Refused => Some(Cancel::Queued { after_another: true }),
            _ => None,
        })
    }

    /// Marks the request as sent. Returns whether it was still waiting to be sent.
    fn send(&self) -> bool {
        self.step(|cancel| matches!(cancel, Cancel::Queued { .. }).then_some(Cancel::Sent))
    }

    /// Takes back a request that was not sent.
    fn withdraw(&self) {
        self.step(|cancel| match cancel {
            Cancel::Queued { after_another: true } => Some(Cancel::Answered),
            Cancel::Queued { after_another: false } => Some(Cancel::None),
            _ => None,
        });
    }

    fn answer(&self, answer: Cancel) {
        self.step(|cancel| (cancel == Cancel::Sent).then_some(answer));
    }

    fn is_queued(&self) -> bool {
        matches!(*self.0.borrow(), Cancel::Queued { .. })
    }

    /// Takes back a request that was not sent, and waits for the answer to one that was.
    pub(super) async fn settled(&self) -> Cancel {
        self.withdraw();
        self.answered().await
    }

    /// Waits until no request is under way or waits to be sent.
    async fn answered(&self) -> Cancel {
        let mut watched = self.0.subscribe();
        let seen = watched.wait_for(|cancel| !matches!(cancel, Cancel::Queued { .. } | Cancel::Sent)).await;
        // `self` is the sender, so the channel is open.
        seen.map_or(Cancel::Unanswered, |cancel| *cancel)
    }

    /// Notes that a round trip which began after the answer has ended: the signal cannot hit a later statement.
    pub(super) fn mark_used_up(&self) {
        self.step(|cancel| matches!(cancel, Cancel::Answered | Cancel::Refused).then_some(Cancel::None));
    }
}

/// What the task is told to do.
enum Order {
    /// Connect, and keep the connection.
    Open,
    /// Ping the connection: another link was lost, and this one may be, too. With `reopens`, it is needed soon.
    Check {
        reopens: bool,
    },
    Send(Request),
    /// Close the connection, and keep none from now on.
    Close(oneshot::Sender<()>),
}

/// A request. However it ends, callers that wait for it are told.
struct Request {
    session: Arc<Session>,
    what: What,
    /// An attempt to send it has failed.
    failed: bool,
    ended: bool,
}

enum What {
    Cancel,
    /// The sender is told whether the session has ended.
    Terminate(Option<oneshot::Sender<bool>>),
}

impl Request {
    fn new(session: &Arc<Session>, what: What) -> Self {
        Self { session: Arc::clone(session), what, failed: false, ended: false }
    }

    /// Whether the request is still to be sent. A session is ended even if no caller waits for that, but then it is tried only once.
    fn is_wanted(&self) -> bool {
        match &self.what {
            What::Cancel => self.session.cancels.is_queued(),
            What::Terminate(waiting) => {
                !self.failed || waiting.as_ref().is_some_and(|waiting| !waiting.is_closed())
            }
        }
    }

    /// Marks the request as sent. Returns whether it was still wanted.
    fn mark_sent(&mut self) -> bool {
        let sent = match self.what {
            What::Cancel => self.session.cancels.send(),
            What::Terminate(_) => true,
        };
        // Otherwise it was taken back, or another request sends it.
        self.ended = !sent;
        sent
    }

    fn answer(mut self, answer: Cancel) {
        self.ended = true;
        match &mut self.what {
            What::Cancel => self.session.cancels.answer(answer),
            What::Terminate(waiting) => {
                if let Some(waiting) = waiting.take() {
                    // A caller that has gone needs no answer.
                    let _: Result<_, _> = waiting.send(matches!(answer, Cancel::Answered | Cancel::Gone));
                }
            }
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.ended && matches!(self.what, What::Cancel) {
            self.session.cancels.withdraw();
            self.session.cancels.answer(Cancel::Unanswered);
        }
    }
}

/// Cancels statements and ends sessions of one pool. Its task ends after this value is dropped and the last requests are sent.
pub(crate) struct Canceller {
    orders: UnboundedSender<Order>,
    /// Whether the connection is open, or was asked for.
    is_open: Arc<AtomicBool>,
}

impl Canceller {
    /// Begins the task, which connects when it is [told to](Self::open), or for the first request.
    pub(super) fn start(config: &Config, pool: &str, keepalive: Duration, on: &runtime::Handle) -> Self {
        let config = config.clone().with_application_name(&format!("{pool} control"));
        let options = config.as_sqlx();
        // The connection idles until a statement is cut off. The setting is in PostgreSQL's manual, chapter 20.11.1.
        let options = with_keepalive(options.disable_statement_logging(), keepalive)
            .options([("idle_session_timeout", "0")]);
        let (orders, received) = unbounded_channel();
        let is_open = Arc::new(AtomicBool::new(false));
        let task = Task {
            pool: pool.to_owned(),
            options,
            dial_limit: config.connect_timeout().unwrap_or(DIAL_LIMIT),
            config,
            check_every: keepalive.max(SILENT),
            orders: received,
            waiting: Vec::new(),
            link: None,
            before: None,
            is_open: Arc::clone(&is_open),
            keeps: false,
            is_closed: false,
            check_at: None,
            retries: None,
            in_trouble: false,
        };
        on.spawn(task.run());
        Self { orders, is_open }
    }

    /// Opens the connection if it is not open.
    pub(super) fn open(&self) {
        if !self.is_open.swap(true, Ordering::Relaxed) {
            // Without the task, the pool has ended.
            let _: Result<_, _> = self.orders.send(Order::Open);
        }
    }

    /// Pings the connection: another link was lost.
    pub(super) fn check(&self) {
        // Without the task, there is no connection.
        let _: Result<_, _> = self.orders.send(Order::Check { reopens: false });
    }

    /// Pings the connection, and opens it again if it was open and does not answer: it will be needed soon.
    pub(super) fn prepare(&self) {
        let _: Result<_, _> = self.orders.send(Order::Check { reopens: true });
    }

    /// Cancels the statement that runs in a session, and waits for the answer. [`Cancel::None`] means that the request was not sent.
    ///
    /// Dropping the future takes the request back if it was not sent yet; otherwise the session knows of the request.
    pub(super) async fn cancel(&self, session: &Arc<Session>) -> Cancel {
        let _end = Withdraw(&session.cancels);
        if session.cancels.queue() {
            // Without the task, the request is dropped here, which updates the session.
            let _: Result<_, _> = self.orders.send(Order::Send(Request::new(session, What::Cancel)));
        }
        session.cancels.answered().await
    }

    /// Ends a session, and waits for the answer for up to [`END_LIMIT`]. Returns whether the session has ended.
    ///
    /// Dropping the future does not take the request back.
    pub(crate) async fn terminate(&self, session: &Arc<Session>) -> bool {
        let (ended, answer) = oneshot::channel();
        let request = Request::new(session, What::Terminate(Some(ended)));
        // Without the task, there is no answer.
        let _: Result<_, _> = self.orders.send(Order::Send(request));
        matches!(timeout(END_LIMIT, answer).await, Ok(Ok(true)))
    }

    /// Closes the connection, and waits for that, but not for an attempt to connect. A later request opens a connection for itself.
    pub(super) async fn close(&self, deadline: Duration) {
        let (done, closed) = oneshot::channel();
        if self.orders.send(Order::Close(done)).is_ok() {
            // The task goes on without us.
            let _: Result<_, _> = timeout(deadline.min(2 * CLOSE_LIMIT), closed).await;
        }
    }
}

/// Takes a request back when the caller that waits for it is dropped.
struct Withdraw<'s>(&'s Cancels);

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}

struct Task {
    pool: String,
    config: Config,
    options: PgConnectOptions,
    dial_limit: Duration,
    /// The connection is pinged this often, and opened again when it does not answer.
    check_every: Duration,
    orders: UnboundedReceiver<Order>,
    /// What is to be sent next: at most two requests for each session.
    waiting: Vec<Request>,
    link: Option<Link>,
    /// The session of the last lost link. The server may not have noticed the loss.
    before: Option<Arc<Session>>,
    is_open: Arc<AtomicBool>,
    /// Whether the connection is kept open while nothing is to be sent.
    keeps: bool,
    /// The pool is closed: a pool's dial that ends late does not reopen the connection.
    is_closed: bool,
    /// When the connection is next pinged.
    check_at: Option<Instant>,
    /// The pauses after failed attempts to connect, and when the next attempt begins.
    retries: Option<(Backoff, Instant)>,
    /// Whether the log has said that statements cannot be cancelled.
    in_trouble: bool,
}

struct Link {
    connection: PgConnection,
    session: Arc<Session>,
    /// When the server last answered; `None` if the link may be lost.
    seen: Option<Instant>,
}

impl Task {
    async fn run(mut self) {
        let mut orders = Vec::new();
        loop {
            let wakes = self.wakes_at();
            tokio::select! {
                biased;
                received = self.orders.recv_many(&mut orders, BATCH) => if received == 0 { break },
                () = sleep_until(wakes.unwrap_or_else(Instant::now).into()), if wakes.is_some() => {}
            }
            // Dropping a sender tells its caller.
            let mut closed = Vec::new();
            for order in orders.drain(..) {
                match order {
                    Order::Open => {
                        self.keeps = !self.is_closed;
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
                        self.keeps = false;
                        closed.push(done);
                    }
                }
            }
            self.serve().await;
            if !self.keeps && self.waiting.is_empty() {
                self.close_link().await;
            }
        }
        // The pool is gone. No caller waits for the remaining requests, so they are tried once.
        self.retries = None;
        self.serve().await;
        self.close_link().await;
    }

    /// When there is something to do without an order.
    fn wakes_at(&self) -> Option<Instant> {
        if !self.waiting.is_empty() {
            let retry = self.retries.as_ref().map(|(_, at)| *at);
            return Some(retry.unwrap_or_else(Instant::now));
        }
        self.check_at.filter(|_| self.keeps)
    }

    /// Sends the waiting requests, and pings the connection when that is due.
    async fn serve(&mut self) {
        self.waiting.retain(Request::is_wanted);
        let now = Instant::now();
        let is_due = self.keeps && self.check_at.is_some_and(|at| at <= now);
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
        let most = self.waiting.len().min(BATCH);
        let mut batch: Vec<_> = self.waiting.drain(..most).collect();
        batch.retain_mut(Request::mark_sent);
        if !batch.is_empty() {
            self.send(batch).await;
        }
    }

    /// Pings the connection if it was silent for [`SILENT`] or its link may be lost, and drops it if it does not answer.
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

    /// Drops a lost connection. The pool's next dial opens another, or the next request.
    fn drop_link(&mut self) {
        if let Some(link) = self.link.take() {
            self.before = Some(link.session);
        }
        self.is_open.store(false, Ordering::Relaxed);
    }

    /// Connects unless there is a connection that answers. Returns whether there is one then.
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
                if let Some(before) = self.before.take() {
                    self.waiting.push(Request::new(&before, What::Terminate(None)));
                }
                self.is_open.store(true, Ordering::Relaxed);
                self.retries = None;
                self.in_trouble = false;
                true
            }
            Err(error) => {
                self.drop_link();
                self.log_trouble(&error, "no connection to cancel statements on");
                let mut backoff = self
                    .retries
                    .take()
                    .map_or_else(|| Backoff::new(MIN_PAUSE, MAX_PAUSE), |(backoff, _)| backoff);
                let pause = backoff.pause();
                self.retries = Some((backoff, Instant::now() + pause));
                for request in &mut self.waiting {
                    request.failed = true;
                }
                false
            }
        }
    }

    /// Sends these requests in one statement.
    async fn send(&mut self, batch: Vec<Request>) {
        let Some(link) = &mut self.link else { return };
        let asked = timeout(LIMIT, signal(&mut link.connection, &batch)).await;
        match asked.unwrap_or_else(|_| Err(timed_out())) {
            Ok(there) => {
                link.seen = Some(Instant::now());
                for (request, is_there) in batch.into_iter().zip(there) {
                    request.answer(if is_there { Cancel::Answered } else { Cancel::Gone });
                }
            }
            Err(error @ sqlx::Error::Database(_))
                if Verdict::of_statement(&error).link < class::Link::Closed =>
            {
                link.seen = Some(Instant::now());
                self.log_trouble(&error, "the server cancels no statements");
                for request in batch {
                    request.answer(Cancel::Refused);
                }
            }
            Err(error) => {
                self.drop_link();
                self.log_trouble(&error, "a request to cancel statements was not answered");
                // Dropping a request updates its session. Ending a session may be tried twice.
                for mut request in batch {
                    if matches!(request.what, What::Terminate(_)) {
                        request.failed = true;
                        self.waiting.push(request);
                    }
                }
            }
        }
    }

    /// Logs a failure as a warning once, until a connection works again.
    fn log_trouble(&mut self, error: &sqlx::Error, what: &str) {
        let (pool, error) = (&self.pool, said(error));
        if std::mem::replace(&mut self.in_trouble, true) {
            tracing::debug!(pool, error, "{what}");
        } else {
            tracing::warn!(pool, error, "{what}");
        }
    }

    async fn close_link(&mut self) {
        self.is_open.store(false, Ordering::Relaxed);
        if let Some(link) = self.link.take() {
            // Within a limit, since the peer may be dead.
            let _: Result<_, _> = timeout(CLOSE_LIMIT, link.connection.close()).await;
        }
    }
}

/// Connects, and sends a statement without requests, so that it is prepared.
async fn dial(config: &Config, options: PgConnectOptions) -> Result<(PgConnection, Session), sqlx::Error> {
    let mut connection = each_way(config, options).await?;
    let (session, _) = identity(&mut connection).await?;
    signal(&mut connection, &[]).await?;
    Ok((connection, session))
}

/// Sends the requests. Returns for each session whether it was signalled.
async fn signal(connection: &mut PgConnection, batch: &[Request]) -> Result<Vec<bool>, sqlx::Error> {
    let pids: Vec<_> = batch.iter().map(|request| request.session.pid).collect();
    let began: Vec<_> = batch.iter().map(|request| request.session.began.clone()).collect();
    let ends: Vec<_> = batch.iter().map(|request| matches!(request.what, What::Terminate(_))).collect();
    let rows = sqlx::query(SIGNAL).bind(pids).bind(began).bind(ends).fetch_all(connection).await?;
    let mut there = vec![false; batch.len()];
    for row in rows {
        let number: i64 = row.try_get(0)?;
        let at = usize::try_from(number - 1).ok();
        if let Some(is_there) = at.and_then(|at| there.get_mut(at)) {
            *is_there = row.try_get(1)?;
        }
    }
    Ok(there)
}

fn timed_out() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use db_testkit::TestDb;

    use super::*;

    fn cancels(at: Cancel) -> Cancels {
        Cancels(watch::Sender::new(at))
    }

    fn now(cancels: &Cancels) -> Cancel {
        *cancels.0.borrow()
    }

    #[test]
    fn a_request_that_was_not_sent_is_taken_back_and_one_that_was_is_not() {
        for (from, to) in [
            (Cancel::Queued { after_another: false }, Cancel::None),
            (Cancel::Queued { after_another: true }, Cancel::Answered),
            (Cancel::Sent, Cancel::Sent),
            (Cancel::Unanswered, Cancel::Unanswered),
        ] {
            let cancels = cancels(from);
            cancels.withdraw();
            assert_eq!(now(&cancels), to, "{from:?}");
        }
    }

    #[test]
    fn nothing_is_asked_of_a_session_twice_at_the_same_time_nor_of_one_in_doubt() {
        for (from, is_new) in [
            (Cancel::None, true),
            (Cancel::Queued { after_another: false }, false),
            (Cancel::Sent, false),
            (Cancel::Answered, true),
            (Cancel::Refused, true),
            (Cancel::Gone, false),
            (Cancel::Unanswered, false),
        ] {
            assert_eq!(cancels(from).queue(), is_new, "{from:?}");
        }
    }

    #[test]
    fn only_a_round_trip_after_the_answer_makes_a_session_fit_again() {
        for (from, to) in [
            (Cancel::Answered, Cancel::None),
            (Cancel::Refused, Cancel::None),
            (Cancel::Sent, Cancel::Sent),
            (Cancel::Unanswered, Cancel::Unanswered),
        ] {
            let cancels = cancels(from);
            cancels.mark_used_up();
            assert_eq!(now(&cancels), to, "{from:?}");
        }
    }

    #[tokio::test]
    async fn a_request_that_is_dropped_tells_those_who_wait() {
        for (from, to) in [
            (Cancel::Queued { after_another: false }, Cancel::None),
            (Cancel::Sent, Cancel::Unanswered),
            (Cancel::Answered, Cancel::Answered),
        ] {
            let session = Arc::new(Session::new(1, String::new()));
            session.cancels.0.send_replace(from);
            drop(Request::new(&session, What::Cancel));
            assert_eq!(session.cancels.answered().await, to, "{from:?}");
        }
    }

    /// A session, as a pool would know it, and the statement that it runs.
    async fn sleeping(db: &TestDb) -> (PgConnection, Session) {
        let mut connection = db.options().application_name("sleeper").connect().await.expect("a connection");
        let (pid, began): (i32, String) =
            sqlx::query_as("select pid, backend_start::text from pg_stat_get_activity(pg_backend_pid())")
                .fetch_one(&mut connection)
                .await
                .expect("who it is");
        (connection, Session::new(pid, began))
    }

    #[db_testkit::test]
    async fn what_is_asked_of_a_session_does_not_hit_a_later_one_with_its_process_id(db: TestDb) {
        let config = Config::from_url(&db.url()).expect("an address");
        let canceller =
            Canceller::start(&config, "test", Duration::from_secs(15), &runtime::Handle::current());
        let (mut connection, session) = sleeping(&db).await;
        let earlier: String = sqlx::query_scalar("select ($1::timestamptz - interval '1 ms')::text")
            .bind(&session.began)
            .fetch_one(&mut connection)
            .await
            .expect("a time");
        let (earlier, session) = (Arc::new(Session::new(session.pid, earlier)), Arc::new(session));
        let sleeper =
            tokio::spawn(async move { sqlx::query("select pg_sleep(60)").execute(&mut connection).await });
        db.until_sessions("it sleeps", |all| all.iter().any(db_testkit::Session::is_sleeping)).await;

        assert_eq!(canceller.cancel(&earlier).await, Cancel::Gone);
        assert!(canceller.terminate(&earlier).await, "it has ended");
        // Both in one statement.
        let (answer, _) = tokio::join!(canceller.cancel(&session), canceller.terminate(&earlier));

        assert_eq!(answer, Cancel::Answered);
        let error = sleeper.await.expect("no panic").expect_err("it was cancelled");
        let code = error.as_database_error().and_then(|error| error.code().map(String::from));
        assert_eq!(code.as_deref(), Some("57014"), "{error}");
    }
}
