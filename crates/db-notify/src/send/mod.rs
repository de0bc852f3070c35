//! Sending notifications: the outbox collects them, the notifier empties it.

mod notifier;
mod outbox;

pub(crate) use notifier::Notifier;
pub(crate) use outbox::{Outbox, check};
