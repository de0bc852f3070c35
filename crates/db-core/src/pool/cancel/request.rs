//! Requests to the canceller's task, and the statement that carries them out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::Row;
use sqlx::postgres::PgConnection;
use tokio::sync::oneshot;

use crate::cancels::Cancel;
use crate::tracker::Session;

/// Signals the sessions that still exist, and returns their numbers. The start of the process is compared, too: the session may be
/// gone, and its process id another client's. Functions are qualified by schema, so that no search path can replace them.
const SIGNAL: &str = "
    select request.n, case when request.ends
      then pg_catalog.pg_terminate_backend(session.pid) else pg_catalog.pg_cancel_backend(session.pid) end
    from rows from (pg_catalog.unnest($1::int4[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::bool[]))
        with ordinality as request (pid, began, ends, n),
      pg_catalog.pg_stat_get_activity(request.pid) as session
    where session.backend_start = request.began::timestamptz";

/// How long ending a session is tried. A statement that nobody waits for may run, and hold its locks, for
/// as long as the server does not notice that its client is gone.
const END_TRIES: Duration = Duration::from_secs(15);

/// A message to the task.
pub(super) enum Order {
    /// Connect, and keep the connection.
    Open,
    /// Ping the connection, since another link was lost. With `reopens`, open it again if it does not answer: it is needed soon.
    Check {
        reopens: bool,
    },
    Send(Request),
    /// Close the connection, and keep none from now on.
    Close(oneshot::Sender<()>),
}

/// A request. Its waiting callers get an answer however it ends, even if it is dropped.
pub(super) struct Request {
    session: Arc<Session>,
    pub(super) action: Action,
    /// When it was made.
    made: Instant,
    ended: bool,
}

pub(super) enum Action {
    Cancel,
    /// The sender reports whether the session has ended.
    Terminate(Option<oneshot::Sender<bool>>),
}

impl Request {
    pub(super) fn new(session: &Arc<Session>, action: Action) -> Self {
        Self { session: Arc::clone(session), action, made: Instant::now(), ended: false }
    }

    /// Whether the request is still to be sent. Ending a session is tried for [`END_TRIES`], even if no caller waits any more: nobody
    /// else would end it.
    pub(super) fn is_wanted(&self) -> bool {
        match &self.action {
            Action::Cancel => self.session.cancels.is_queued(),
            Action::Terminate(waiting) => {
                self.made.elapsed() < END_TRIES
                    || waiting.as_ref().is_some_and(|waiting| !waiting.is_closed())
            }
        }
    }

    /// Marks the request as sent. Returns whether it was still wanted.
    pub(super) fn mark_sent(&mut self) -> bool {
        let sent = match self.action {
            Action::Cancel => self.session.cancels.send(),
            Action::Terminate(_) => true,
        };
        // Otherwise it was withdrawn, or another request sends it.
        self.ended = !sent;
        sent
    }

    pub(super) fn answer(mut self, answer: Cancel) {
        self.ended = true;
        match &mut self.action {
            Action::Cancel => self.session.cancels.answer(answer),
            Action::Terminate(waiting) => {
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
        if !self.ended && matches!(self.action, Action::Cancel) {
            self.session.cancels.withdraw();
            self.session.cancels.answer(Cancel::Unanswered);
        }
    }
}

/// Sends the requests. Returns for each session whether it exists and was signalled.
pub(super) async fn signal(
    connection: &mut PgConnection,
    batch: &[Request],
) -> Result<Vec<bool>, sqlx::Error> {
    let pids: Vec<_> = batch.iter().map(|request| request.session.pid).collect();
    let began: Vec<_> = batch.iter().map(|request| request.session.began.clone()).collect();
    let ends: Vec<_> = batch.iter().map(|request| matches!(request.action, Action::Terminate(_))).collect();
    let rows = sqlx::query(SIGNAL).bind(pids).bind(began).bind(ends).fetch_all(connection).await?;
    let mut signalled = vec![false; batch.len()];
    for row in rows {
        let number: i64 = row.try_get(0)?;
        let at = usize::try_from(number - 1).ok();
        if let Some(signalled) = at.and_then(|at| signalled.get_mut(at)) {
            *signalled = row.try_get(1)?;
        }
    }
    Ok(signalled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dropped_request_answers_its_waiting_callers() {
        for (from, to) in [
            (Cancel::Queued { after_another: false }, Cancel::None),
            (Cancel::Sent, Cancel::Unanswered),
            (Cancel::Answered, Cancel::Answered),
        ] {
            let session = Arc::new(Session::new(1, String::new()));
            session.cancels.set(from);
            drop(Request::new(&session, Action::Cancel));
            assert_eq!(session.cancels.answered().await, to, "{from:?}");
        }
    }
}
