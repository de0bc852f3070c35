//! Ending statements, and sessions, from beside them.
//!
//! The driver keeps the secret that a cancel request of the protocol needs to itself, so `pg_cancel_backend` is called
//! (PostgreSQL's manual, chapter 9.27.2 "Server Signaling Functions"). One task of each pool does that, on a connection that is
//! kept for it. What is asked for while it waits for an answer goes into its next statement.

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

/// The answer to a statement takes no longer than this, counted from when it was sent.
const LIMIT: Duration = Duration::from_secs(1);

/// One attempt at connecting takes no longer than this, unless the address has a `connect_timeout`.
const DIAL_LIMIT: Duration = Duration::from_secs(3);

/// The first pause between two attempts while somebody waits.
const MIN_PAUSE: Duration = Duration::from_millis(10);

/// The longest pause between two attempts while somebody waits.
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// A connection that was silent for so long is asked for a sign of life before it is used: whatever broke the link of a
/// statement may have broken this one, too. It is not found out by the request itself, because a request without an answer may be
/// carried out later, on somebody else's statement.
const SILENT: Duration = Duration::from_secs(1);

/// Who has a session ended waits no longer than this.
const END_LIMIT: Duration = Duration::from_secs(2);

/// A goodbye takes no longer than this.
const GOODBYE: Duration = Duration::from_millis(300);

/// The most requests of one statement.
const BATCH: usize = 256;

/// Answers with the sessions that are there. The start of the process is compared, too: the session may be gone and its process
/// id another client's by now. The functions have their full names, so that no search path puts others in their place.
const ASK: &str = "
    select asked.n, case when asked.ends
      then pg_catalog.pg_terminate_backend(there.pid) else pg_catalog.pg_cancel_backend(there.pid) end
    from rows from (pg_catalog.unnest($1::int4[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::bool[]))
        with ordinality as asked (pid, began, ends, n),
      pg_catalog.pg_stat_get_activity(asked.pid) as there
    where there.backend_start = asked.began::timestamptz";

/// What becomes of a request to cancel. Known to the session and not to who asked, who may be dropped: as long as a request is
/// under way, the session is no use to anybody, and after its answer not before one more round trip.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cancel {
    /// None is under way, and none can hit anything any more.
    #[default]
    None,
    /// It waits to be sent. The one before may still need its round trip.
    Queued { after_another: bool },
    /// It is under way.
    Sent,
    /// The server has signalled the session.
    Answered,
    /// The server did not carry it out.
    Refused,
    /// The server has no such session any more.
    Gone,
    /// It was sent, and its answer never came: it may be carried out at any time.
    Unanswered,
}

/// The requests to cancel a session's statements, which are one after the other.
#[derive(Debug)]
pub(crate) struct Cancels(watch::Sender<Cancel>);

impl Cancels {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Cancel::None))
    }

    /// Takes the step if there is one from here, and says whether there was.
    fn step(&self, next: impl FnOnce(Cancel) -> Option<Cancel>) -> bool {
        self.0.send_if_modified(|cancel| match next(*cancel) {
            Some(next) => {
                *cancel = next;
                true
            }
            None => false,
        })
    }

    /// Says whether the request is a new one, which has to be sent.
    fn queue(&self) -> bool {
        self.step(|cancel| match cancel {
            Cancel::None => Some(Cancel::Queued { after_another: false }),
            Cancel::Answered | Cancel::Refused => Some(Cancel::Queued { after_another: true }),
            _ => None,
        })
    }

    /// Says whether it is still wanted, and sent from now on.
    fn send(&self) -> bool {
        self.step(|cancel| matches!(cancel, Cancel::Queued { .. }).then_some(Cancel::Sent))
    }

    /// Takes a request back that was not sent.
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

    /// Waits until none is under way. One that waits to be sent is taken back.
    pub(super) async fn settled(&self) -> Cancel {
        self.withdraw();
        self.answered().await
    }

    /// Waits until none is under way or waits to be sent.
    async fn answered(&self) -> Cancel {
        let mut watched = self.0.subscribe();
        let seen = watched.wait_for(|cancel| !matches!(cancel, Cancel::Queued { .. } | Cancel::Sent)).await;
        // The sender is our own.
        seen.map_or(Cancel::Unanswered, |cancel| *cancel)
    }

    /// Notes that a round trip that began after the answer has ended.
    pub(super) fn used_up(&self) {
        self.step(|cancel| matches!(cancel, Cancel::Answered | Cancel::Refused).then_some(Cancel::None));
    }
}

/// What the task is told.
enum Order {
    /// To connect, if it is not connected.
    Open,
    /// To ask for a sign of life: a link was lost, and its own may be, too; or it will be needed soon.
    Look {
        opens: bool,
    },
    Ask(Request),
    /// To keep no connection any more.
    Close(oneshot::Sender<()>),
}

/// A request on its way. However it ends, those who wait for it are told.
struct Request {
    session: Arc<Session>,
    what: What,
    /// It could not be sent.
    failed: bool,
    ended: bool,
}

enum What {
    Cancel,
    /// Told whether the session is ended.
    Terminate(Option<oneshot::Sender<bool>>),
}

impl Request {
    fn new(session: &Arc<Session>, what: What) -> Self {
        Self { session: Arc::clone(session), what, failed: false, ended: false }
    }

    /// Whether it is to be sent. A session is ended though nobody waits for that any more, but it is not tried again and again.
    fn is_wanted(&self) -> bool {
        match &self.what {
            What::Cancel => self.session.cancels.is_queued(),
            What::Terminate(waiting) => {
                !self.failed || waiting.as_ref().is_some_and(|waiting| !waiting.is_closed())
            }
        }
    }

    /// Says whether it is to be sent.
    fn send(&mut self) -> bool {
        let sent = match self.what {
            What::Cancel => self.session.cancels.send(),
            What::Terminate(_) => true,
        };
        // If not, it was taken back, or is sent by another one.
        self.ended = !sent;
        sent
    }

    fn answer(mut self, answer: Cancel) {
        self.ended = true;
        match &mut self.what {
            What::Cancel => self.session.cancels.answer(answer),
            What::Terminate(waiting) => {
                if let Some(waiting) = waiting.take() {
                    // Who has gone needs no answer.
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

/// Asks for statements and sessions to be ended. One per pool; its task ends with it, after what was asked for.
pub(crate) struct Canceller {
    orders: UnboundedSender<Order>,
    /// Whether its connection is open, or was asked for.
    is_open: Arc<AtomicBool>,
}

impl Canceller {
    /// Begins its task, which opens nothing before it is [told to](Self::open).
    pub(super) fn start(config: &Config, pool: &str, keepalive: Duration, on: &runtime::Handle) -> Self {
        let config = config.clone().with_application_name(&format!("{pool} control"));
        let options = config.as_sqlx();
        // It idles for as long as nothing is cut off. The setting is one of PostgreSQL's manual, chapter 20.11.1.
        let options = with_keepalive(options.disable_statement_logging(), keepalive)
            .options([("idle_session_timeout", "0")]);
        let (orders, received) = unbounded_channel();
        let is_open = Arc::new(AtomicBool::new(false));
        let task = Task {
            pool: pool.to_owned(),
            options,
            dial_limit: config.connect_timeout().unwrap_or(DIAL_LIMIT),
            config,
            look_after: keepalive.max(SILENT),
            orders: received,
            waiting: Vec::new(),
            link: None,
            before: None,
            is_open: Arc::clone(&is_open),
            keeps: false,
            is_closed: false,
            looks_at: None,
            retries: None,
            in_trouble: false,
        };
        on.spawn(task.run());
        Self { orders, is_open }
    }

    /// Has the connection opened if it is not.
    pub(super) fn open(&self) {
        if !self.is_open.swap(true, Ordering::Relaxed) {
            // Without its task, there is nobody to open it.
            let _: Result<_, _> = self.orders.send(Order::Open);
        }
    }

    /// Has the connection asked for a sign of life: another one was lost.
    pub(super) fn look(&self) {
        // Without its task, there is none to look at.
        let _: Result<_, _> = self.orders.send(Order::Look { opens: false });
    }

    /// The same, and has it opened again if it was open and gives none: it will be needed soon.
    pub(super) fn get_ready(&self) {
        let _: Result<_, _> = self.orders.send(Order::Look { opens: true });
    }

    /// Has the statement cancelled that runs in a session, and waits for the answer. [`Cancel::None`] means that it was not sent.
    ///
    /// Dropping the future takes the request back if it was not sent yet; otherwise the session knows of it.
    pub(super) async fn cancel(&self, session: &Arc<Session>) -> Cancel {
        let _end = Withdraw(&session.cancels);
        if session.cancels.queue() {
            // Without the task, the request is dropped here, and the session told.
            let _: Result<_, _> = self.orders.send(Order::Ask(Request::new(session, What::Cancel)));
        }
        session.cancels.answered().await
    }

    /// Has a session ended, and waits for the answer for up to [`END_LIMIT`]. Says whether it is.
    ///
    /// Dropping the future leaves the request to be sent.
    pub(crate) async fn terminate(&self, session: &Arc<Session>) -> bool {
        let (ended, answer) = oneshot::channel();
        let request = Request::new(session, What::Terminate(Some(ended)));
        // Without the task, nobody answers.
        let _: Result<_, _> = self.orders.send(Order::Ask(request));
        matches!(timeout(END_LIMIT, answer).await, Ok(Ok(true)))
    }

    /// Has the connection closed, and waits for that, though not for an attempt at connecting. What is asked for later has one opened
    /// for itself.
    pub(super) async fn close(&self, deadline: Duration) {
        let (done, closed) = oneshot::channel();
        if self.orders.send(Order::Close(done)).is_ok() {
            // It goes on by itself.
            let _: Result<_, _> = timeout(deadline.min(2 * GOODBYE), closed).await;
        }
    }
}

/// Takes a request back when who waits for it is dropped.
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
    /// A connection is asked for a sign of life when it was silent for so long, and opened again when it gives none.
    look_after: Duration,
    orders: UnboundedReceiver<Order>,
    /// What is to be sent next, no more than two requests for each session that somebody knows.
    waiting: Vec<Request>,
    link: Option<Link>,
    /// The session of the link that was lost. It may be there still, if nothing told the server.
    before: Option<Arc<Session>>,
    is_open: Arc<AtomicBool>,
    /// Whether a connection is kept when nothing is to be sent.
    keeps: bool,
    /// The pool is closed, and a dial that was under way then changes nothing.
    is_closed: bool,
    /// When that is looked at.
    looks_at: Option<Instant>,
    /// The pauses after failed attempts, and when the next attempt begins.
    retries: Option<(Backoff, Instant)>,
    /// Whether somebody was told that statements cannot be cancelled.
    in_trouble: bool,
}

struct Link {
    connection: PgConnection,
    session: Arc<Session>,
    /// When the server last said something; `None` when there is doubt.
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
            // Told when they are dropped.
            let mut closed = Vec::new();
            for order in orders.drain(..) {
                match order {
                    Order::Open => {
                        self.keeps = !self.is_closed;
                        self.looks_at = Some(Instant::now());
                    }
                    Order::Look { opens } => {
                        if let Some(link) = &mut self.link {
                            link.seen = None;
                        }
                        self.check().await;
                        if opens {
                            self.looks_at = Some(Instant::now());
                        }
                    }
                    Order::Ask(request) => self.waiting.push(request),
                    Order::Close(done) => {
                        self.is_closed = true;
                        self.keeps = false;
                        closed.push(done);
                    }
                }
            }
            self.serve().await;
            if !self.keeps && self.waiting.is_empty() {
                self.goodbye().await;
            }
        }
        // The pool is gone. Nobody waits for what is left, so it is tried once.
        self.retries = None;
        self.serve().await;
        self.goodbye().await;
    }

    /// When there is something to do though nobody asks.
    fn wakes_at(&self) -> Option<Instant> {
        if !self.waiting.is_empty() {
            let retry = self.retries.as_ref().map(|(_, at)| *at);
            return Some(retry.unwrap_or_else(Instant::now));
        }
        self.looks_at.filter(|_| self.keeps)
    }

    /// Sends what waits, and looks after the connection when that is due.
    async fn serve(&mut self) {
        self.waiting.retain(Request::is_wanted);
        let now = Instant::now();
        let is_due = self.keeps && self.looks_at.is_some_and(|at| at <= now);
        if !is_due && self.waiting.is_empty() {
            return;
        }
        if is_due {
            self.looks_at = now.checked_add(self.look_after);
        } else if self.retries.as_ref().is_some_and(|(_, at)| now < *at) {
            return;
        }
        if !self.connect().await || self.waiting.is_empty() {
            return;
        }
        let most = self.waiting.len().min(BATCH);
        let mut batch: Vec<_> = self.waiting.drain(..most).collect();
        batch.retain_mut(Request::send);
        if !batch.is_empty() {
            self.send(batch).await;
        }
    }

    /// Drops the connection if there is doubt about it, and it gives no sign of life.
    async fn check(&mut self) {
        let Some(link) = &mut self.link else { return };
        if link.seen.is_some_and(|seen| seen.elapsed() < SILENT) {
            return;
        }
        if matches!(timeout(PING_LIMIT, link.connection.ping()).await, Ok(Ok(()))) {
            link.seen = Some(Instant::now());
        } else {
            self.is_lost();
        }
    }

    /// The pool's next connection opens it again, or the next request.
    fn is_lost(&mut self) {
        if let Some(link) = self.link.take() {
            self.before = Some(link.session);
        }
        self.is_open.store(false, Ordering::Relaxed);
    }

    /// Sees to it that there is a connection that answers. Says whether there is.
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
                self.is_lost();
                self.note_trouble(&error, "no connection to cancel statements on");
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

    /// Sends what is asked for in one statement.
    async fn send(&mut self, batch: Vec<Request>) {
        let Some(link) = &mut self.link else { return };
        let asked = timeout(LIMIT, ask(&mut link.connection, &batch)).await;
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
                self.note_trouble(&error, "the server cancels no statements");
                for request in batch {
                    request.answer(Cancel::Refused);
                }
            }
            Err(error) => {
                self.is_lost();
                self.note_trouble(&error, "a request to cancel statements was not answered");
                // The sessions learn it from the requests. To end one may be said twice.
                for mut request in batch {
                    if matches!(request.what, What::Terminate(_)) {
                        request.failed = true;
                        self.waiting.push(request);
                    }
                }
            }
        }
    }

    /// Says it once, until it works again.
    fn note_trouble(&mut self, error: &sqlx::Error, what: &str) {
        let (pool, error) = (&self.pool, said(error));
        if std::mem::replace(&mut self.in_trouble, true) {
            tracing::debug!(pool, error, "{what}");
        } else {
            tracing::warn!(pool, error, "{what}");
        }
    }

    async fn goodbye(&mut self) {
        self.is_open.store(false, Ordering::Relaxed);
        if let Some(link) = self.link.take() {
            // A dead peer cannot make that long.
            let _: Result<_, _> = timeout(GOODBYE, link.connection.close()).await;
        }
    }
}

/// Connects, and asks for nothing: the statement is then prepared.
async fn dial(config: &Config, options: PgConnectOptions) -> Result<(PgConnection, Session), sqlx::Error> {
    let mut connection = each_way(config, options).await?;
    let (session, _) = identity(&mut connection).await?;
    ask(&mut connection, &[]).await?;
    Ok((connection, session))
}

/// Says of each session whether it was there.
async fn ask(connection: &mut PgConnection, batch: &[Request]) -> Result<Vec<bool>, sqlx::Error> {
    let pids: Vec<_> = batch.iter().map(|request| request.session.pid).collect();
    let began: Vec<_> = batch.iter().map(|request| request.session.began.clone()).collect();
    let ends: Vec<_> = batch.iter().map(|request| matches!(request.what, What::Terminate(_))).collect();
    let rows = sqlx::query(ASK).bind(pids).bind(began).bind(ends).fetch_all(connection).await?;
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
            cancels.used_up();
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
        db.until_sessions("it sleeps", |all| all.iter().any(db_testkit::Session::is_running)).await;

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
