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
//! The events of a log have the ids 1, 2, 3, … without holes, in the order of their commits. A reader that has seen event `n` has
//! seen all events up to `n`, and resumes with `n` as its cursor: it skips no event and sees none twice.
//!
//! # Ways to append
//!
//! | to append | use |
//! |---|---|
//! | a batch | [`EventLogs::append`] |
//! | a batch together with other rows | [`EventLogs::append_in`], in your transaction |
//! | a batch that may have to be sent again | [`EventLogs::append_once`], with a writer and a sequence number |
//! | batches of a log that only you append to | [`Writer`], which sends a batch again by itself |
//! | events that come one by one | [`Appender`], which gathers them into batches and sends those again by itself |
//!
//! A batch that is sent again is recognized by its writer and its sequence number, and stored once.
//!
//! # When events are gone
//!
//! A reader gets an error, and skips no event silently:
//!
//! * [`Error::Removed`]: the log, or the next events after the cursor, were removed by [`remove`](EventLogs::remove),
//!   [`retain`](EventLogs::retain) or [`trim`](EventLogs::trim). The error has the first event that is left: read on from there.
//! * [`Error::Rewound`]: events that were seen do not exist any more, or other events have their ids. This happens when a
//!   standby that had not received all events is promoted, when a backup is restored, or when a server with `synchronous_commit
//!   = off` crashes. The error has the last event that is unchanged: read on after it. A cursor beyond the end of its log gets
//!   the same error.
//!
//! Each page is checked: it must begin right after the cursor, and the event at the cursor must be the one that was seen. For that,
//! each event has the [`Mark`] of its batch, a short hash. A stream remembers the marks of some of the batches that it has returned.
//! Store [`Event::mark`] beside the id and come back with [`EventLogs::resume`], and the check holds across restarts. An id without a
//! mark is taken to stand for the event that has it now.
//!
//! # Storage
//!
//! One append is one statement, one round trip and one row, however many events it has. The statement continues the ids of the
//! log's last row. If two writers continue from the same row, the primary key lets one of them insert; the other one inserts nothing,
//! which is no error for the server and leaves no dead row, and tries again. No counter is updated, so an old snapshot elsewhere does
//! not slow appends down. The last row of a finished log says that nothing can follow.
//!
//! When a log is removed before it is finished, it gets a last row without events and of size 0 until it is gone. An append
//! that had begun before the removal finds that row, and fails.
//!
//! [`SCHEMA`] has two tables and a view. Copy its files into your `migrations/`.
//!
//! # Following
//!
//! A stream reads pages until it is at the end of the log. Then it joins the log's reader in this process, which waits for
//! notifications of the [`Bus`](db_notify::Bus) and publishes each page to all streams of the log: a thousand streams of one log
//! cost one query for each append. A stream that is too slow for the reader goes back to pages and joins again; it delays no other
//! stream. The reader starts with the first stream that is at the end, and ends with the last one.
//!
//! Streams that catch up use a quarter of the pool at most ([`EventOptions`]), so that appends do not queue behind them. Streams that
//! read the same page at the same time share one query.
//!
//! A lost notification delays streams by at most [`POLL_FLOOR`]; no event is lost. One query polls the ends of all logs that are
//! followed in the process, at least that often and after each gap of the bus, and wakes the readers of logs that have grown. An
//! append to a log that no process follows sends no notification ([`WatchedTopics`](db_notify::WatchedTopics)).
//!
//! # Features
//!
//! This crate has no cargo features.

mod append;
mod deadline;
mod error;
mod event;
mod follow;
mod history;
mod id;
mod limits;
mod logs;
mod mark;
mod read;
mod remove;
mod stream;
mod topics;

pub use append::{Appender, Writer};
pub use error::Error;
pub use event::{Event, NewEvent};
pub use follow::EventOptions;
pub use history::{History, Selection};
pub use id::{LogId, WriterId};
pub use limits::POLL_FLOOR;
pub use logs::{EventLogs, EventsState};
pub use mark::Mark;
pub use read::{Events, Head, IntoIter};
pub use remove::{Removed, Retention, Trim};
pub use stream::EventStream;
pub use topics::LogTopics;

pub use db_core::Schema;

/// The migrations that make the crate's tables, in their order. Copy each into your `migrations/` under a version of your own, so
/// that the `sqlx` CLI sees one history.
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
