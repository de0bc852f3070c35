//! How many bytes of an answer may wait for the client.

use std::sync::Arc;

use axum::body::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// About the size of a piece of an answer, in bytes.
pub(super) const PIECE: usize = 16 << 10;

/// The most pieces that may wait to be written to a client's socket. Fewer than hyper takes before it stops polling the answer (16,
/// or 400 kB), so that the answer is polled, and can end, while its client does not read.
const PIECES: usize = 4;

/// The room for pieces that are not written yet.
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(PIECES)))
    }

    /// Waits until there is room for a piece. Cancel safe.
    pub(super) async fn take(&self) -> Place {
        Place(Arc::clone(&self.0).acquire_owned().await.expect("the semaphore is never closed"))
    }

    /// Takes room for a piece, if there is any now.
    pub(super) fn try_take(&self) -> Option<Place> {
        Arc::clone(&self.0).try_acquire_owned().ok().map(Place)
    }

    /// Waits until all pieces are written. Cancel safe.
    pub(super) async fn empty(&self) {
        let pieces = u32::try_from(PIECES).expect("a small number");
        let _all = self.0.acquire_many(pieces).await.expect("the semaphore is never closed");
    }
}

/// Room for a piece. Given back when the piece is written or dropped.
pub(super) struct Place(OwnedSemaphorePermit);

impl Place {
    pub(super) fn fill(self, text: impl Into<String>) -> Bytes {
        Bytes::from_owner(Piece { text: text.into(), _place: self.0 })
    }
}

struct Piece {
    text: String,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}
