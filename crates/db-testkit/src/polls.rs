//! Dropping a future at each point where it waits.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use crate::until::PATIENCE;

/// Polls a future at most `polls` times, the first time at once and then after each wake-up, and drops it right after the last
/// poll. Returns its output if it finished, or `None` if it was dropped before.
///
/// A test that calls this with 0, 1, 2, … polls until there is an output has cancelled its future at every await where it can
/// be cancelled.
///
/// ```
/// # fn main() -> Result<(), sqlx::Error> { db_testkit::run(async |db| {
/// use db_testkit::poll_then_drop;
///
/// let pool = db.pool();
/// for polls in 0.. {
///     let insert = async {
///         let mut tx = pool.begin().await?;
///         sqlx::query("select 1").execute(&mut *tx).await?;
///         tx.commit().await
///     };
///     if poll_then_drop(insert, polls).await.transpose()?.is_some() {
///         break;
///     }
///     // Here: what must be true wherever it was cancelled.
/// }
/// # Ok(())
/// # }) }
/// ```
///
/// Only the future's own wake-ups lead to a poll, not those of the task around it. Dropping the returned future drops the inner
/// one.
///
/// # Panics
///
/// If no wake-up comes within 20 s, so that a test does not hang; and outside a tokio runtime.
pub async fn poll_then_drop<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let bell = Arc::new(Bell { rung: AtomicBool::new(true), task: Mutex::new(Waker::noop().clone()) });
    let waker = Waker::from(Arc::clone(&bell));
    let mut done = 0;
    while done < polls {
        let polled = poll_fn(|cx| {
            if !bell.has_rung(cx.waker()) {
                return Poll::Pending;
            }
            Poll::Ready(future.as_mut().poll(&mut Context::from_waker(&waker)))
        });
        let Ok(polled) = tokio::time::timeout(PATIENCE, polled).await else {
            panic!("nothing woke the future within {PATIENCE:?} of its poll {done} of {polls}");
        };
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        done += 1;
    }
    None
}

/// A waker that separates wake-ups of the future from those of the task around it.
struct Bell {
    rung: AtomicBool,
    task: Mutex<Waker>,
}

impl Bell {
    /// Whether the future was woken since the last call. The task's waker is stored first, or a wake-up in between would be
    /// lost.
    fn has_rung(&self, task: &Waker) -> bool {
        self.task.lock().unwrap_or_else(PoisonError::into_inner).clone_from(task);
        self.rung.swap(false, Ordering::AcqRel)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Bell>) {
        self.rung.store(true, Ordering::Release);
        self.task.lock().unwrap_or_else(PoisonError::into_inner).wake_by_ref();
    }
}
