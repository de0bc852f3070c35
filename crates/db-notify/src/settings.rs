//! What the bus can be told from outside.

use db_core::settings::{Reader, Setting};

use crate::BusOptions;

static QUEUE: Setting = Setting {
    name: "db-notification-bus-queue-size",
    value: "NOTIFICATIONS",
    default: Some("10000"),
    help: "The most notifications that wait to be sent, from 1000 to 1000000, or 0 for the default. Past it, all subscribers are \
           told to look for themselves.",
    change: "Raise it when subscribers report Overflow gaps while the server is well; each entry is a topic and a payload in memory.",
    is_secret: false,
};

/// What the bus can be told from outside.
pub static BUS: [&Setting; 1] = [&QUEUE];

/// The bus's options.
pub fn bus(reader: &mut Reader<'_>) -> BusOptions {
    let mut options = BusOptions::default();
    if let Some(text) = reader.text(&QUEUE) {
        let number = text.trim().parse().ok();
        match number.filter(|number| *number == 0 || BusOptions::QUEUES.contains(number)) {
            Some(queue) => options.queue = queue,
            None => {
                reader.complain(&QUEUE, "must be a whole number from 1000 to 1000000, or 0 for the default");
            }
        }
    }
    options
}
