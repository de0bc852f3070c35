//! The bytes on their way in one direction.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::link::End;

/// How many bytes are buffered; beyond that the sender has to wait.
const ROOM: usize = 4 << 20;

/// Chunks of bytes with their times of arrival, and the end that follows them.
#[derive(Debug, Default)]
pub(super) struct Way {
    chunks: VecDeque<(Instant, Vec<u8>)>,
    /// How many bytes of the first chunk are delivered.
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

    /// Sets the end, after which nothing comes.
    pub(super) fn finish(&mut self, end: End, latency: Duration) {
        self.end = Some((Instant::now() + latency, end));
    }

    pub(super) fn has_room(&self) -> bool {
        self.end.is_none() && self.held < ROOM
    }

    /// The time at which the next chunk, or the end, arrives.
    pub(super) fn due(&self) -> Option<Instant> {
        self.chunks.front().map(|(due, _)| *due).or_else(|| self.end.map(|(due, _)| due))
    }

    /// The bytes at the front, if any.
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

    /// The end, once no bytes are before it.
    pub(super) fn end(&self) -> Option<End> {
        if self.chunks.is_empty() { self.end.map(|(_, end)| end) } else { None }
    }

    /// Drops everything; returns whether there was anything.
    pub(super) fn lose(&mut self) -> bool {
        let lost = !self.chunks.is_empty() || self.end.is_some();
        *self = Way::default();
        lost
    }
}
