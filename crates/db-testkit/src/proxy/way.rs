//! What is on its way in one direction.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::link::End;

/// More than that waits with its sender.
const ROOM: usize = 4 << 20;

/// Bytes, each with the time of its arrival, and the end that comes after them.
#[derive(Debug, Default)]
pub(super) struct Way {
    chunks: VecDeque<(Instant, Vec<u8>)>,
    /// Of the first chunk.
    delivered: usize,
    held: usize,
    end: Option<(Instant, End)>,
}

impl Way {
    pub(super) fn push(&mut self, bytes: &[u8], latency: Duration) {
        if !bytes.is_empty() {
            self.held += bytes.len();
            self.chunks.push_back((Instant::now() + latency, bytes.to_vec()));
        }
    }

    /// Nothing comes after it.
    pub(super) fn finish(&mut self, end: End, latency: Duration) {
        self.end = Some((Instant::now() + latency, end));
    }

    pub(super) fn has_room(&self) -> bool {
        self.end.is_none() && self.held < ROOM
    }

    /// When the next thing arrives.
    pub(super) fn due(&self) -> Option<Instant> {
        self.chunks.front().map(|(due, _)| *due).or_else(|| self.end.map(|(due, _)| due))
    }

    /// The bytes at the front, if there are any.
    pub(super) fn first(&self) -> Option<&[u8]> {
        self.chunks.front().map(|(_, bytes)| &bytes[self.delivered..])
    }

    pub(super) fn delivered(&mut self, length: usize) {
        self.delivered += length;
        self.held -= length;
        if self.chunks.front().is_some_and(|(_, bytes)| bytes.len() == self.delivered) {
            self.chunks.pop_front();
            self.delivered = 0;
        }
    }

    /// The end, when nothing is before it.
    pub(super) fn end(&self) -> Option<End> {
        if self.chunks.is_empty() { self.end.map(|(_, end)| end) } else { None }
    }

    /// Forgets everything, and says whether there was something.
    pub(super) fn lose(&mut self) -> bool {
        let lost = !self.chunks.is_empty() || self.end.is_some();
        *self = Way::default();
        lost
    }
}
