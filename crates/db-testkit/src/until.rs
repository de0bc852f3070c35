//! Waiting for a state.

use std::time::{Duration, Instant};

/// Limit for one wait of a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Pause between two checks.
pub(crate) const PAUSE: Duration = Duration::from_millis(5);

/// Waits until the condition holds, and checks it every few milliseconds.
///
/// Cancel safe if the condition's future is.
///
/// # Panics
///
/// After 20 s, naming `what`; also if the condition itself does not return.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds().await {
            tokio::time::sleep(PAUSE).await;
        }
    });
    assert!(waited.await.is_ok(), "not within {:.0?}: {what}", begun.elapsed());
}
