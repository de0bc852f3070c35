//! What the sessions of a script share.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::book::Book;
use super::reply::ServerError;
use super::transaction::AtCommit;

/// What comes to a session from elsewhere.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Notification {
        from: i32,
        channel: String,
        payload: String,
    },
    /// Of the statement that runs.
    Cancel,
    /// With the server's last words, if it has some.
    End(Option<ServerError>),
}

#[derive(Debug)]
struct Seat {
    secret: i32,
    events: UnboundedSender<Event>,
    listens: BTreeSet<String>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) book: Book,
    sessions: BTreeMap<i32, Seat>,
    pub(super) accepted: u64,
    /// Statements, in the order in which they came.
    pub(super) asked: Vec<String>,
    /// The process ids of sessions that were to be cancelled.
    pub(super) cancels: Vec<i32>,
    transactions: HashMap<u64, &'static str>,
}

/// As of a server that has run for a while.
const FIRST_PID: i32 = 1000;
const FIRST_TRANSACTION: u64 = 700;

impl State {
    pub(super) fn of(book: Book) -> State {
        State { book, ..State::default() }
    }

    /// A new session: its process id, its secret, and what comes to it.
    pub(super) fn begin_session(&mut self) -> (i32, i32, UnboundedReceiver<Event>) {
        let (events, received) = unbounded_channel();
        self.accepted += 1;
        let pid = FIRST_PID + i32::try_from(self.accepted).unwrap_or(i32::MAX - FIRST_PID);
        let secret = fastrand::i32(..);
        self.sessions.insert(pid, Seat { secret, events, listens: BTreeSet::new() });
        (pid, secret, received)
    }

    pub(super) fn end_session(&mut self, pid: i32) {
        self.sessions.remove(&pid);
    }

    pub(super) fn open(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn begin_transaction(&mut self) -> u64 {
        let number = FIRST_TRANSACTION + self.transactions.len() as u64;
        self.transactions.insert(number, "in progress");
        number
    }

    pub(super) fn end_transaction(&mut self, number: u64, committed: bool) {
        self.transactions.insert(number, if committed { "committed" } else { "aborted" });
    }

    pub(super) fn status_of(&self, number: u64) -> Option<&'static str> {
        self.transactions.get(&number).copied()
    }

    pub(super) fn commit(&mut self, pid: i32, what: Vec<AtCommit>) {
        let mut sent = BTreeSet::new();
        for what in what {
            match what {
                AtCommit::Notify { channel, payload } => {
                    // As the server does: the same notification once in a transaction.
                    if sent.insert((channel.clone(), payload.clone())) {
                        self.notify(pid, &channel, &payload);
                    }
                }
                AtCommit::Listen(channel) => {
                    self.sessions.entry(pid).and_modify(|seat| {
                        seat.listens.insert(channel);
                    });
                }
                AtCommit::Unlisten(channel) => {
                    self.sessions.entry(pid).and_modify(|seat| {
                        seat.listens.remove(&channel);
                    });
                }
                AtCommit::UnlistenAll => {
                    self.sessions.entry(pid).and_modify(|seat| seat.listens.clear());
                }
            }
        }
    }

    pub(super) fn listeners(&self, channel: &str) -> usize {
        self.listening(channel).count()
    }

    /// To all sessions that listen.
    pub(super) fn notify(&self, from: i32, channel: &str, payload: &str) {
        for seat in self.listening(channel) {
            let (channel, payload) = (channel.to_owned(), payload.to_owned());
            // A session that has just ended hears nothing.
            let _ = seat.events.send(Event::Notification { from, channel, payload });
        }
    }

    fn listening(&self, channel: &str) -> impl Iterator<Item = &Seat> {
        self.sessions.values().filter(move |seat| seat.listens.contains(channel))
    }

    /// By the protocol's request, which knows the session's secret.
    pub(super) fn cancel_by_secret(&mut self, pid: i32, secret: i32) {
        if self.sessions.get(&pid).is_some_and(|seat| seat.secret == secret) {
            self.signal(pid, false);
        }
    }

    pub(super) fn signal(&mut self, pid: i32, ends: bool) {
        let event = if ends {
            Event::End(Some(terminated()))
        } else {
            self.cancels.push(pid);
            Event::Cancel
        };
        if let Some(seat) = self.sessions.get(&pid) {
            let _ = seat.events.send(event);
        }
    }

    /// With the server's last words, or without a word.
    pub(super) fn end_all(&self, with_words: bool) {
        for seat in self.sessions.values() {
            let _ = seat.events.send(Event::End(with_words.then(terminated)));
        }
    }
}

fn terminated() -> ServerError {
    let text = "terminating connection due to administrator command";
    ServerError::new("57P01", text).severity("FATAL")
}
