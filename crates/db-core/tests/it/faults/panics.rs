//! Detects panics in tasks that nobody awaits, such as the pool's own, which tokio would swallow.

use std::sync::{Mutex, Once, PoisonError};

use tokio::runtime::{Handle, Id};

/// All panics with their runtimes: the process has one panic hook, and tests run in parallel.
static SEEN: Mutex<Vec<(Id, String)>> = Mutex::new(Vec::new());

/// Starts recording panics.
pub(super) fn watch() {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if let Ok(runtime) = Handle::try_current() {
                let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
                seen.push((runtime.id(), panic.to_string()));
            }
            before(panic);
        }));
    });
}

/// Asserts that no task of this test's runtime has panicked.
pub(super) fn assert_none() {
    let here = Handle::current().id();
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let ours: Vec<_> = seen.into_iter().filter(|(runtime, _)| *runtime == here).collect();
    assert!(ours.is_empty(), "a task has panicked: {ours:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(
    clippy::disallowed_methods,
    reason = "the runtime of the test has two threads, and the panic is to be caught in place"
)]
async fn a_panic_in_a_task_that_nobody_awaits_is_recorded() {
    watch();
    assert_none();

    let ended = tokio::spawn(async { panic!("on purpose: a panic to record") }).await;

    assert!(ended.is_err_and(|error| error.is_panic()));
    assert!(std::panic::catch_unwind(|| tokio::task::block_in_place(assert_none)).is_err());
}
