//! Knowing whether a statement was cut off.
//!
//! The driver does not say whether an answer is still on its way; a future dropped at an await point leaves it there.
//! So each statement raises a flag before its first byte is sent, and lowers it when its last one was read.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::stream::BoxStream;

/// What is known of a connection between two statements.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// A statement was begun and its end not seen.
    in_flight: bool,
    /// The link failed.
    lost: bool,
    /// Something was done that we did not see through: sqlx's own connection was lent, or the session was changed.
    pub(crate) foreign: bool,
    pub(crate) transaction: Transaction,
}

/// Where a connection stands with transactions of ours.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transaction {
    #[default]
    None,
    /// One is open, or may be.
    Open,
    /// A statement failed inside it, so the server will only roll it back.
    Aborted,
}

impl State {
    /// Whether the next user of the connection would notice nothing of this one.
    pub(crate) fn is_clean(&self) -> bool {
        !self.in_flight && !self.lost && !self.foreign && self.transaction == Transaction::None
    }

    pub(crate) fn begin(&mut self) {
        self.in_flight = true;
    }

    pub(crate) fn end(&mut self, error: Option<&sqlx::Error>) {
        match error {
            // The server answered, so the statement is over; a transaction around it is lost.
            Some(sqlx::Error::Database(_)) => {
                self.in_flight = false;
                if self.transaction == Transaction::Open {
                    self.transaction = Transaction::Aborted;
                }
            }
            Some(
                sqlx::Error::Io(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::WorkerCrashed,
            ) => self.lost = true,
            // Errors of decoding and of row counts come after the answer was read.
            Some(_) | None => self.in_flight = false,
        }
    }
}

/// A stream of results that lowers the flag when it has ended.
pub(crate) struct Flagged<'e, T> {
    stream: BoxStream<'e, Result<T, sqlx::Error>>,
    state: &'e mut State,
}

impl<'e, T> Flagged<'e, T> {
    pub(crate) fn new(state: &'e mut State, stream: BoxStream<'e, Result<T, sqlx::Error>>) -> Self {
        state.begin();
        Self { stream, state }
    }
}

impl<T> Stream for Flagged<'_, T> {
    type Item = Result<T, sqlx::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.stream.as_mut().poll_next(cx);
        match &next {
            Poll::Ready(None) => self.state.end(None),
            Poll::Ready(Some(Err(error))) => self.state.end(Some(error)),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        next
    }
}

/// Awaits one statement with the flag raised.
pub(crate) async fn flagged<T>(
    state: &mut State,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    state.begin();
    let result = statement.await;
    state.end(result.as_ref().err());
    result
}
