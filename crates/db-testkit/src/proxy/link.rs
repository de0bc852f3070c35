//! One client's connection, and its connection to the server.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::io::ErrorKind;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::messages::{Found, Talk, Wanted};
use super::way::Way;
use super::wire::{Target, Wire};

/// How many bytes are read at once.
const CHUNK: usize = 16 << 10;

/// What happens to the bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Passing,
    /// They wait.
    Frozen,
    /// They are read and dropped.
    BlackHole,
}

/// How the client's side ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Closed,
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    ToServer,
    ToClient,
}

/// The faults that concern all connections together.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) latency: Cell<Duration>,
    /// How many more bytes pass before a reset.
    pub(super) budget_to_server: Cell<Option<u64>>,
    pub(super) budget_to_client: Cell<Option<u64>>,
    pub(super) answer_to: RefCell<Option<Vec<u8>>>,
    pub(super) before: RefCell<Option<Vec<u8>>>,
}

impl Faults {
    fn budget(&self, direction: Direction) -> &Cell<Option<u64>> {
        match direction {
            Direction::ToServer => &self.budget_to_server,
            Direction::ToClient => &self.budget_to_client,
        }
    }
}

/// Hears the bytes of a connection.
pub(super) type Tap = Box<dyn FnMut(Direction, &[u8])>;

pub(super) struct Link {
    pub(super) client: Wire,
    pub(super) mode: watch::Sender<Mode>,
    /// Bytes were lost, so the connection cannot be continued.
    pub(super) broken: Cell<bool>,
    talk: RefCell<Talk>,
    tap: RefCell<Option<Tap>>,
}

impl Link {
    pub(super) fn new(client: Wire, mode: Mode, tap: Option<Tap>) -> Link {
        let (talk, tap) = (RefCell::default(), RefCell::new(tap));
        Link { client, mode: watch::Sender::new(mode), broken: Cell::new(false), talk, tap }
    }

    /// Connects to the server once the mode allows it, and passes bytes until one side ends.
    pub(super) async fn run(&self, target: &Target, faults: &Faults) -> End {
        let mut mode = self.mode.subscribe();
        loop {
            let now = *mode.borrow_and_update();
            match now {
                Mode::Passing => break,
                Mode::Frozen => {}
                Mode::BlackHole => {
                    self.broken.set(true);
                    return self.discard_all().await;
                }
            }
            change(&mut mode).await;
        }
        let server = match target.connect().await {
            Ok(server) => server,
            Err(error) => {
                tracing::debug!(%error, "the proxy cannot connect to the server");
                return End::Reset;
            }
        };
        tokio::select! {
            end = self.pass(&self.client, &server, Direction::ToServer, faults) => end,
            end = self.pass(&server, &self.client, Direction::ToClient, faults) => end,
        }
    }

    /// Reads and drops what the client sends, until it closes.
    pub(super) async fn discard_all(&self) -> End {
        let mut buffer = vec![0; CHUNK];
        loop {
            if self.client.readable().await.is_err() {
                return End::Closed;
            }
            match self.client.try_read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return End::Closed,
                Ok(_) => {}
            }
        }
    }

    /// Passes bytes in one direction. There is no await between a decision and its action, and a change of the mode is handled
    /// first, so no byte passes after a fault was set.
    async fn pass(&self, from: &Wire, to: &Wire, direction: Direction, faults: &Faults) -> End {
        let mut mode = self.mode.subscribe();
        let mut way = Way::default();
        let mut buffer = vec![0; CHUNK];
        let mut is_over = false;
        loop {
            let now = *mode.borrow_and_update();
            match now {
                Mode::Passing => {}
                Mode::Frozen => {
                    change(&mut mode).await;
                    continue;
                }
                Mode::BlackHole => {
                    if way.lose() {
                        self.broken.set(true);
                    }
                }
            }
            let due = way.due();
            let is_due = due.is_some_and(|due| due <= Instant::now());
            if let Some(end) = way.end()
                && is_due
            {
                return end;
            }
            tokio::select! {
                biased;
                () = change(&mut mode) => {}
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() && !is_due => {}
                _ = to.writable(), if is_due => {
                    match deliver(&mut way, to, faults.budget(direction)) {
                        Delivered::Some => {}
                        Delivered::LastAllowed => return End::Reset,
                        // The other end has closed. Bytes that it sent before still have to pass; the other direction then ends
                        // the link.
                        Delivered::NobodyThere => return pending().await,
                    }
                }
                _ = from.readable(), if !is_over && way.has_room() => match from.try_read(&mut buffer) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Ok(length) if length > 0 => {
                        if let Some(end) = self.take(&buffer[..length], direction, &mut way, faults) {
                            return end;
                        }
                    }
                    ended => {
                        is_over = true;
                        let lost = ended.is_err() || self.talk.borrow().is_withholding();
                        let is_reset = direction == Direction::ToClient && lost;
                        way.finish(if is_reset { End::Reset } else { End::Closed }, faults.latency.get());
                    }
                },
            }
        }
    }

    /// Queues bytes for delivery, as far as the faults allow.
    fn take(&self, bytes: &[u8], direction: Direction, way: &mut Way, faults: &Faults) -> Option<End> {
        if let Some(tap) = &mut *self.tap.borrow_mut() {
            tap(direction, bytes);
        }
        let latency = faults.latency.get();
        let mut talk = self.talk.borrow_mut();
        match direction {
            Direction::ToServer => {
                let found = {
                    let (answered, unsent) = (faults.answer_to.borrow(), faults.before.borrow());
                    let wanted = Wanted { answered: answered.as_deref(), unsent: unsent.as_deref() };
                    talk.hear_client(bytes, wanted)
                };
                match found {
                    Found::Nothing => {}
                    Found::Answered => *faults.answer_to.borrow_mut() = None,
                    Found::Unsent => {
                        *faults.before.borrow_mut() = None;
                        return Some(End::Reset);
                    }
                }
                way.push(bytes, latency);
            }
            Direction::ToClient => {
                let verdict = talk.hear_server(bytes);
                way.push(&bytes[..verdict.pass], latency);
                if verdict.finished {
                    way.finish(End::Reset, latency);
                }
            }
        }
        None
    }
}

enum Delivered {
    Some,
    LastAllowed,
    NobodyThere,
}

fn deliver(way: &mut Way, to: &Wire, budget: &Cell<Option<u64>>) -> Delivered {
    let Some(bytes) = way.first() else { return Delivered::Some };
    let allowed = budget
        .get()
        .map_or(bytes.len(), |left| usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len())));
    let delivered = if allowed == 0 {
        0
    } else {
        match to.try_write(&bytes[..allowed]) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Delivered::Some,
            Err(_) => return Delivered::NobodyThere,
        }
    };
    way.delivered(delivered);
    let left = budget.get().map(|left| left - delivered as u64);
    if left == Some(0) {
        budget.set(None);
        return Delivered::LastAllowed;
    }
    budget.set(left);
    Delivered::Some
}

/// Waits for the next mode. The sender lives as long as the link.
async fn change(mode: &mut watch::Receiver<Mode>) {
    if mode.changed().await.is_err() {
        pending::<()>().await;
    }
}
