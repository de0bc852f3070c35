//! What the state is told, and what it answers.

use super::count::{Checkout, Dialling, Quarantined};

/// Counters that go up when something is learnt about all connections at once. A connection remembers their values from when it was
/// made or last checked.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Epochs {
    /// Losses of links. A connection of an older generation is verified before its next use.
    pub(crate) generation: u64,
    /// The generation that began when a server was found to refuse writes. A connection of an older one is asked for its role, since
    /// a demoted server answers pings.
    pub(crate) roles: u64,
    /// How often cached plans were found stale.
    pub(crate) plans: u64,
    /// How often types were found stale, or all connections evicted. A connection with a lower count is closed before its next use. `plans` goes up with each.
    pub(crate) types: u64,
}

/// What a connection must have to be handed out unchecked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standard {
    pub(crate) generation: u64,
    pub(crate) plans: u64,
}

/// How many connections and callers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) open: u32,
    pub(crate) idle: u32,
    pub(crate) in_use: u32,
    pub(crate) repairing: u32,
    pub(crate) dialling: u32,
    pub(crate) waiting: u32,
}

/// The answer to a caller.
#[derive(Debug)]
pub(crate) enum Take<C> {
    Idle(C, Checkout, Standard),
    /// No connection is idle, and the caller may [wait](super::PoolState::wait).
    MayWait,
    /// `max_waiting` callers wait already.
    Shed,
    Closed,
}

/// Whether a connection that comes back may serve again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wear {
    Usable,
    /// Too old, or used too often.
    WornOut,
}

/// Where a usable connection goes.
#[derive(Debug)]
#[must_use = "the connection is in here, unless it is idle"]
pub(crate) enum Place<C, W> {
    /// Into the idle stack.
    Idle,
    /// To the caller that waited longest.
    Hand(W, C, Checkout),
    /// It is to be closed.
    Close(C, Quarantined),
}

/// Whether a session may still be at work when its link is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtServer {
    Nothing,
    /// A statement, which has to be ended. It takes a place until then.
    Statement,
}

/// What a failed dial does next.
#[derive(Debug)]
#[must_use]
pub(crate) enum AfterFailure<W> {
    Retry(Dialling),
    /// This dial ends. These callers are refused.
    Stop(Vec<W>),
}

/// What an idle connection's times say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Age {
    /// It is older than `max_lifetime`.
    pub(crate) is_expired: bool,
    /// It was not used for `idle_timeout`.
    pub(crate) is_unused: bool,
    /// The server said nothing on it for `keepalive`.
    pub(crate) is_silent: bool,
}

/// What an event asks the driver to do.
#[derive(Debug)]
#[must_use = "connections and callers are in here"]
pub(crate) struct Actions<C, W> {
    pub(crate) close: Vec<(C, Quarantined)>,
    pub(crate) verify: Vec<(C, Quarantined)>,
    pub(crate) refuse: Vec<W>,
    pub(crate) dial: Vec<Dialling>,
}

impl<C, W> Default for Actions<C, W> {
    fn default() -> Self {
        Self { close: Vec::new(), verify: Vec::new(), refuse: Vec::new(), dial: Vec::new() }
    }
}

/// The loss of a link.
#[derive(Debug)]
#[must_use = "connections are in here"]
pub(crate) struct Loss<C, W> {
    /// The lost connection's session, which has to be ended at the server.
    pub(crate) orphan: Option<Quarantined>,
    /// No loss was known that is as recent as this one: other links may be lost as well.
    pub(crate) is_news: bool,
    pub(crate) actions: Actions<C, W>,
}
