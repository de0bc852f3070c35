//! The answer to a caller in the queue.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::driver::Driver;
use super::live::CheckedOut;
use crate::connect::ConnectFailure;

/// The sender of the answer to a caller in the queue.
pub(super) type Waiter = oneshot::Sender<Result<Handoff, Refusal>>;

/// The receiver of that answer.
pub(super) type Answer = oneshot::Receiver<Result<Handoff, Refusal>>;

/// Why a caller is refused before its time limit.
#[derive(Debug, Clone)]
pub(super) enum Refusal {
    Closed,
    /// Another caller has taken its place.
    Shed,
    /// It has waited for too long, as everybody does.
    Late,
    /// The server would refuse the next dial, too.
    Dial(ConnectFailure),
}

/// A connection on its way to a caller. If the caller is gone, the connection goes back to the pool.
pub(super) struct Handoff {
    driver: Arc<Driver>,
    out: Option<CheckedOut>,
}

impl Handoff {
    pub(super) fn new(driver: &Arc<Driver>, out: CheckedOut) -> Self {
        Self { driver: Arc::clone(driver), out: Some(out) }
    }

    pub(super) fn open(mut self) -> CheckedOut {
        self.out.take().expect("a handoff is opened once")
    }
}

impl Drop for Handoff {
    fn drop(&mut self) {
        if let Some(out) = self.out.take() {
            self.driver.give_back(out, None, None);
        }
    }
}
