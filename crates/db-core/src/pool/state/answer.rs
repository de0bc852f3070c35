//! The inputs and outputs of the state.

use super::count::{Checkout, Dialling, Quarantined};
use super::queue::Ticket;
use crate::stats::CloseReason;

/// Counters that rise when something is learnt about all connections at once. A connection stores their values from its dial or its
/// last check.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Epochs {
    /// Losses of links. A connection of an older generation is pinged before its next use.
    pub(crate) generation: u64,
    /// The generation that began when a server was found to refuse writes. A connection of an older generation is asked for its role,
    /// since a demoted server answers pings.
    pub(crate) roles: u64,
    /// The number of times that cached plans were found stale.
    pub(crate) plans: u64,
    /// The number of times that types were found stale or all connections were evicted. A connection with a lower count is closed
    /// before its next use. `plans` rises with it.
    pub(crate) types: u64,
}

/// The values that a connection needs to be handed out unchecked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standard {
    pub(crate) generation: u64,
    pub(crate) plans: u64,
}

/// The numbers of connections and callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) open: u32,
    pub(crate) idle: u32,
    pub(crate) in_use: u32,
    pub(crate) repairing: u32,
    pub(crate) dialling: u32,
    pub(crate) waiting: u32,
}

/// The answer to a caller that joins the queue.
#[derive(Debug)]
#[must_use = "a caller and dials are in this value"]
pub(crate) struct Joined<W> {
    pub(crate) ticket: Ticket,
    pub(crate) room: Room,
    /// A patient caller, which is refused in its place.
    pub(crate) displaced: Option<W>,
    pub(crate) dial: Vec<Dialling>,
}

/// What a caller in the queue waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Fewer connections are in use than may be: for one that is dialled.
    ToDial,
    /// For one that others use.
    None,
}

/// Why a caller would be refused now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// `max_waiting` callers wait already.
    Shed,
    /// Callers wait for too long, and this one would be refused in the end.
    Late,
    Closed,
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

/// Whether a returned connection may be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wear {
    Usable,
    WornOut(CloseReason),
}

/// Where a usable connection goes.
#[derive(Debug)]
#[must_use = "the connection is in this value, unless it is idle"]
pub(crate) enum Place<C, W> {
    /// Into the idle stack.
    Idle,
    /// To the caller whose turn it is.
    Hand(W, C, Checkout),
    /// It is to be closed.
    Close(Closing<C>),
}

/// Where a usable connection goes, and the callers that have waited for it for too long.
#[derive(Debug)]
#[must_use = "a connection and callers are in this value"]
pub(crate) struct Placed<C, W> {
    pub(crate) place: Place<C, W>,
    pub(crate) late: Vec<W>,
}

/// A connection that is to be closed.
#[derive(Debug)]
pub(crate) struct Closing<C> {
    pub(crate) conn: C,
    pub(crate) quarantined: Quarantined,
    pub(crate) why: CloseReason,
}

/// Whether a session may still run a statement when its link is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtServer {
    Nothing,
    /// A statement, whose session must be ended. It takes a slot until then.
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

/// What an idle connection's times mean.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Age {
    /// Older than `max_lifetime`.
    pub(crate) is_expired: bool,
    /// Not used for `idle_timeout`.
    pub(crate) is_unused: bool,
    /// No answer from the server for `keepalive`.
    pub(crate) is_silent: bool,
}

/// What the driver must do after an event.
#[derive(Debug)]
#[must_use = "connections and callers are in this value"]
pub(crate) struct Actions<C, W> {
    pub(crate) close: Vec<Closing<C>>,
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
#[must_use = "connections are in this value"]
pub(crate) struct Loss<C, W> {
    /// The lost connection's session, which must be ended at the server.
    pub(crate) orphan: Option<Quarantined>,
    /// The first loss of its generation: other links may be lost as well.
    pub(crate) is_news: bool,
    pub(crate) actions: Actions<C, W>,
}
