//! Waiting for a state.

use std::time::{Duration, Instant};

/// For one state of a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks.
pub(crate) const PAUSE: Duration = Duration::from_millis(5);

/// Waits until the condition holds, and looks again every few milliseconds.
///
/// Cancel-safe, if the condition's future is.
///
/// # Panics
///
/// When it does not hold within 20 seconds, and names what was waited for. A look that itself never ends counts as well.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds().await {
            tokio::time::sleep(PAUSE).await;
        }
    });
    assert!(waited.await.is_ok(), "not within {:.0?}: {what}", begun.elapsed());
}
