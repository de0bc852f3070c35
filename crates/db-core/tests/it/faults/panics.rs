//! Panics of tasks that nobody waits for. The pool's own are spawned and let go, so tokio would swallow theirs.

use std::sync::{Mutex, Once, PoisonError};

use tokio::runtime::{Handle, Id};

/// There is one hook for the whole process, and tests run in parallel: so each panic is kept with the runtime it was in.
static SEEN: Mutex<Vec<(Id, String)>> = Mutex::new(Vec::new());

/// From now on, panics are kept.
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

/// Fails when a task of this test's runtime has panicked.
pub(super) fn assert_none() {
    let here = Handle::current().id();
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let ours: Vec<_> = seen.into_iter().filter(|(runtime, _)| *runtime == here).collect();
    assert!(ours.is_empty(), "a task has panicked: {ours:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_that_nobody_waits_for_is_seen() {
    watch();
    assert_none();

    let ended = tokio::spawn(async { panic!("on purpose, as the test of who looks for panics") }).await;

    assert!(ended.is_err_and(|error| error.is_panic()));
    assert!(std::panic::catch_unwind(|| tokio::task::block_in_place(assert_none)).is_err());
}
