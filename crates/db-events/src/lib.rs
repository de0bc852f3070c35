//! Durable logs of events: append, read from a cursor, follow live.
//!
//! ```
//! # db_testkit::run(async |db| {
//! # for schema in db_events::SCHEMA {
//! #     sqlx::raw_sql(schema.up).execute(&db.pool()).await?;
//! # }
//! # let config = db_core::Config::from_url(&db.url())?;
//! # let pool = db_core::Pool::new(&config, db_core::PoolOptions::api());
//! # let bus = db_notify::Bus::open(&config, db_notify::BusOptions::default()).await?;
//! use db_events::{EventLogs, NewEvent};
//!
//! let events = EventLogs::new(pool, &bus);
//! let log = events.create().await?;
//!
//! events.append(log, &[NewEvent::new("token", "Once"), NewEvent::new("token", " upon")]).await?;
//! events.finish(log, &[NewEvent::new("end", "")]).await?;
//!
//! let mut stream = events.stream(log, 0);
//! while let Some(batch) = stream.next_batch().await? {
//!     for event in batch {
//!         println!("{} {} {}", event.id, event.kind, event.data);
//!     }
//! }
//! # assert_eq!(events.head(log).await?.last, 3);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! # Ids
//!
//! The events of a log are numbered 1, 2, 3, … without holes, in the order of their commits. A reader that has seen
//! event `n` has seen all events up to `n`, and resumes with `n` as its cursor: no event is skipped or seen twice.
//!
//! # When a log is not what it was
//!
//! A reader is told, and skips nothing:
//!
//! * [`Error::Removed`]: the log was removed, or what comes next in it. Whoever takes a page checks that it begins right after the
//!   cursor, so a reader in the middle of a log that [`retain`](EventLogs::retain) removes does not see its last events as if they
//!   were the next. A log whose beginning was removed can be read from where it begins now.
//! * [`Error::Rewound`]: events that were seen are not there any more, or others are in their place. This happens when a standby
//!   that had not received everything is promoted, when a backup is restored, or when a server that runs with
//!   `synchronous_commit = off` crashes. The error has the last event that still holds; read on after it. A cursor
//!   beyond the end of its log is told the same.
//!
//! Numbers alone do not tell others' events from those that were seen. Each event has the [`Mark`] of its batch, a short hash of what
//! only that batch has; a stream checks it with each page, and remembers some of those before. Keep [`Event::mark`] beside the
//! number and come back with [`EventLogs::resume`], and the same is checked after a restart. A number alone is taken at its word.
//!
//! # How it is stored
//!
//! One append is one statement, one round trip and one row, however many events it carries. The statement continues
//! from the log's last row. Of two writers that continue from the same one, the primary key lets one insert; the other inserts
//! nothing, which is no error of the server's and leaves no dead row, and tries again. No counter is updated, so a long snapshot elsewhere does not slow the appends down. A log is
//! finished by its last row saying so: nothing can follow it.
//!
//! A log that is removed while it is not finished gets a last row without events, and with a size of 0, until it is gone: by it, an
//! append that had begun before finds that it cannot be stored.
//!
//! Two tables and a view, in [`SCHEMA`]; copy its files into your `migrations/`.
//!
//! # How it is followed
//!
//! A stream reads pages until it is at the end. Then it joins the log's one reader in this process, which waits for
//! notifications of the [`Bus`](db_notify::Bus) and passes on what it reads: a thousand streams of one log cost one query for
//! each append. Who is too slow for that goes back to pages, and joins again; nobody waits for anybody. The reader begins with
//! the first stream that has caught up, and ends with the last one.
//!
//! Those who read pages have a quarter of the pool at most ([`EventOptions`]), so that appends do not queue behind them, and those
//! who want the same page at the same time read it once.
//!
//! A notification that is lost delays the streams until the next look, at most [`POLL_FLOOR`] later; no event is lost. One
//! query looks at all logs that are followed in a process, now and then and after each gap of the bus, and wakes the readers of
//! those that have moved. An append to a log that nobody follows notifies nobody
//! ([`WatchedTopics`](db_notify::WatchedTopics)).
//!
//! # Features
//!
//! This crate has no cargo features.

mod append;
mod appender;
mod catching_up;
mod error;
mod event;
mod fanout;
mod head;
mod history;
mod log;
mod mark;
mod page;
mod reader;
mod registry;

mod retention;
mod seen;
mod stream;
mod writer;

pub use appender::Appender;
pub use catching_up::EventOptions;
pub use error::Error;
pub use event::{Event, LogId, NewEvent, WriterId};
pub use head::Head;
pub use history::{History, Selection};
pub use log::{EventLogs, EventsState, LogTopics};
pub use mark::Mark;
pub use page::{Events, IntoIter};
pub use retention::{Removed, Retention};
pub use stream::{EventStream, POLL_FLOOR};
pub use writer::Writer;

/// The crate's tables, as one migration.
pub struct Schema {
    /// The name of the migration's files, without a version.
    pub name: &'static str,
    /// Makes the tables.
    pub up: &'static str,
    /// Removes them, with all events.
    pub down: &'static str,
}

/// The migrations that make the crate's tables, in their order. A service copies each into its `migrations/`, under a
/// version of its own, so that the `sqlx` CLI sees one history.
pub const SCHEMA: &[Schema] = &[
    Schema {
        name: "event_logs",
        up: include_str!("../schema/1_event_logs.up.sql"),
        down: include_str!("../schema/1_event_logs.down.sql"),
    },
    Schema {
        name: "event_log_writers",
        up: include_str!("../schema/2_event_log_writers.up.sql"),
        down: include_str!("../schema/2_event_log_writers.down.sql"),
    },
];
