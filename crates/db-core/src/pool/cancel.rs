//! Cancels statements and ends sessions from another connection.
//!
//! The protocol's cancel request needs a secret that sqlx does not give out, so `pg_cancel_backend` is called instead (PostgreSQL's
//! manual, chapter 9.27.2 "Server Signaling Functions"). Each pool has one task for that, with a connection of its own. Requests that
//! arrive while the task waits for an answer go into its next statement together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::timeout;

use self::request::{Action, Order, Request};
use self::task::Task;
use crate::Config;
use crate::cancels::{Cancel, Cancels};
use crate::tracker::Session;

mod request;
mod task;

/// A caller waits this long for a session to be ended.
const END_LIMIT: Duration = Duration::from_secs(2);

/// The limit for closing the connection.
const CLOSE_LIMIT: Duration = Duration::from_millis(300);

/// Cancels statements and ends sessions of one pool. Its task ends after this value is dropped and the last requests are sent.
pub(crate) struct Canceller {
    orders: UnboundedSender<Order>,
    /// Whether the connection is open, or an order to open it was sent.
    is_open: Arc<AtomicBool>,
}

impl Canceller {
    /// Starts the task. It connects after [`open`](Self::open), or for the first request.
    pub(super) fn start(config: &Config, pool: &str, keepalive: Duration, on: &runtime::Handle) -> Self {
        let (orders, received) = unbounded_channel();
        let is_open = Arc::new(AtomicBool::new(false));
        on.spawn(Task::new(config, pool, keepalive, received, Arc::clone(&is_open)).run());
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

    /// Pings the connection, and opens it again if it was open and does not answer: it is needed soon.
    pub(super) fn prepare(&self) {
        let _: Result<_, _> = self.orders.send(Order::Check { reopens: true });
    }

    /// Cancels the statement that runs in a session, and waits for the answer. [`Cancel::None`] means that the request was not sent.
    ///
    /// Dropping the future withdraws the request if it was not sent yet; otherwise the session keeps its state.
    pub(super) async fn cancel(&self, session: &Arc<Session>) -> Cancel {
        let _end = Withdraw(&session.cancels);
        if session.cancels.queue() {
            // Without the task, the request is dropped here, which updates the session.
            let _: Result<_, _> = self.orders.send(Order::Send(Request::new(session, Action::Cancel)));
        }
        session.cancels.answered().await
    }

    /// Ends a session, and waits for the answer for up to [`END_LIMIT`]. Returns whether the session has ended.
    ///
    /// Dropping the future does not withdraw the request.
    pub(crate) async fn terminate(&self, session: &Arc<Session>) -> bool {
        let (ended, answer) = oneshot::channel();
        let request = Request::new(session, Action::Terminate(Some(ended)));
        // Without the task, there is no answer.
        let _: Result<_, _> = self.orders.send(Order::Send(request));
        matches!(timeout(END_LIMIT, answer).await, Ok(Ok(true)))
    }

    /// Closes the connection, and waits for that, but not for a dial under way. A later request opens a connection for itself.
    pub(super) async fn close(&self, deadline: Duration) {
        let (done, closed) = oneshot::channel();
        if self.orders.send(Order::Close(done)).is_ok() {
            // The task continues without this caller.
            let _: Result<_, _> = timeout(deadline.min(2 * CLOSE_LIMIT), closed).await;
        }
    }
}

/// Withdraws the request when the waiting caller is dropped.
struct Withdraw<'s>(&'s Cancels);

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}

#[cfg(test)]
mod tests {
    use db_testkit::TestDb;
    use sqlx::ConnectOptions;
    use sqlx::postgres::PgConnection;

    use super::*;

    /// A session as a pool knows it, and its connection.
    async fn sleeping(db: &TestDb) -> (PgConnection, Session) {
        let mut connection = db.options().application_name("sleeper").connect().await.expect("a connection");
        let (pid, began): (i32, String) =
            sqlx::query_as("select pid, backend_start::text from pg_stat_get_activity(pg_backend_pid())")
                .fetch_one(&mut connection)
                .await
                .expect("the session's id");
        (connection, Session::new(pid, began))
    }

    #[db_testkit::test]
    async fn a_request_does_not_hit_a_later_session_with_the_same_process_id(db: TestDb) {
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
        db.until_sessions("the session sleeps", |all| all.iter().any(db_testkit::Session::is_sleeping)).await;

        assert_eq!(canceller.cancel(&earlier).await, Cancel::Gone);
        assert!(canceller.terminate(&earlier).await, "the earlier session has ended");
        // Both requests go into one statement.
        let (answer, _) = tokio::join!(canceller.cancel(&session), canceller.terminate(&earlier));

        assert_eq!(answer, Cancel::Answered);
        let error = sleeper.await.expect("no panic").expect_err("the statement was cancelled");
        let code = error.as_database_error().and_then(|error| error.code().map(String::from));
        assert_eq!(code.as_deref(), Some("57014"), "{error}");
    }
}
