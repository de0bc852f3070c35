//! The settings of the bus.

use db_core::settings::{Reader, Setting};

use crate::BusOptions;

static QUEUE: Setting = Setting {
    name: "db-notification-bus-queue-size",
    value: "NOTIFICATIONS",
    default: Some("10000"),
    help: "The most notifications that wait to be sent, from 1000 to 1000000, or 0 for the default. Past that number, one message \
           replaces them, and all subscribers receive a gap.",
    change: "Raise it when subscribers report Overflow gaps while the server is reachable; each entry keeps a topic and a payload in \
             memory.",
    is_secret: false,
    repeats: false,
};

/// The settings of the bus.
pub static BUS: [&Setting; 1] = [&QUEUE];

/// Reads the options of the bus.
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
