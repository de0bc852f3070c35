//! What the bus can be told from outside.

use db_core::settings::{Reader, Setting};

use crate::BusOptions;

static QUEUE: Setting = Setting {
    name: "db-notification-bus-queue-size",
    value: "NOTIFICATIONS",
    default: Some("10000"),
    help: "The most notifications that wait to be sent. Past it, all subscribers are told to look for themselves.",
    change: "Raise it when subscribers report Overflow gaps while the server is well; each entry is a topic and a payload in memory.",
    is_secret: false,
};

/// What the bus can be told from outside.
pub static BUS: [&Setting; 1] = [&QUEUE];

/// The bus's options.
pub fn bus(reader: &mut Reader<'_>) -> BusOptions {
    let mut options = BusOptions::default();
    if let Some(queue) = reader.number(&QUEUE, 1..=10_000_000) {
        options.queue = usize::try_from(queue).unwrap_or(usize::MAX);
    }
    options
}
