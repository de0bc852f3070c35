//! A notification bus on PostgreSQL's LISTEN and NOTIFY.
//!
//! ```no_run
//! # async fn run(config: db_core::Config) -> Result<(), Box<dyn std::error::Error>> {
//! use db_notify::{Bus, BusOptions, Delivery, Topic};
//!
//! let bus = Bus::open(&config, BusOptions::default()).await?;
//! let topic = Topic::new("orders/17")?;
//!
//! let mut orders = bus.subscribe(&topic, 16);
//! bus.notify_with(&topic, "paid").await?;
//!
//! while let Some(delivery) = orders.recv().await {
//!     match delivery {
//!         Delivery::Notification(notification) => println!("{}", notification.payload()),
//!         Delivery::Gap(gap) => println!("look again: {gap}"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised, and what is not
//!
//! A notification means "look again", not "here is the data". It may be lost: while the link is down, when a
//! subscriber's queue is full, when the process that wanted to send it is killed between its commit and its notify.
//!
//! * The first two are followed by a [`Delivery::Gap`] as soon as notifications flow again, never before: what is looked at
//!   then is looked at while nothing can be missed any more.
//! * **The last one is not known to anybody.** A reader that must see everything also looks by itself from time to time, as
//!   `db-events` does every 5 s; or the writer pays for [`Bus::notify_in`], which is exact.
//!
//! Equal notifications that wait together are sent once, in the place of the last of them. Those of one process arrive in their
//! order, but for one case: when the answer to a statement that notifies is late or lost, nobody knows whether it was done, and it is
//! sent again by another session. Should it have been done, or be done by a server that was only slow, its notifications arrive
//! twice, the second time perhaps after later ones. Not to send them again would lose them in all other cases, and nobody would be
//! told. So a payload says what to look at, and not what is to be seen there.
//!
//! A link that dies silently is noticed by a heartbeat: within [`BusOptions::heartbeat`] and [`BusOptions::answer`], or 5 s
//! for the latter while a LISTEN is under way. What keeps the bus from its work is logged once, when it begins, and once when it
//! is over; [`Bus::state`] tells it meanwhile.
//!
//! [`Bus::lazy`] connects to nothing before somebody subscribes or notifies; such a first subscriber is told by a gap when
//! LISTEN is in force.
//!
//! # How to notify
//!
//! | call | sent | costs the writer |
//! |---|---|---|
//! | [`bus.notify(topic).await`](Bus::notify) | when it returns | a round trip, and the pace |
//! | [`bus.notify_soon(topic)`](Bus::notify_soon) | soon, or when the server is back | nothing |
//! | [`tx.notify(topic)`](NotifyAfterCommit::notify) | soon after the commit, or when nobody can tell whether it was done | nothing |
//! | [`bus.notify_in(&mut tx, …)`](Bus::notify_in) | by the commit itself | all such commits wait for each other |
//! | [`watched.notify(topic)`](WatchedTopics::notify) | soon, if anybody watches the topic | nothing |
//!
//! # One connection, one channel
//!
//! LISTEN costs PostgreSQL time per channel and message, so all topics of a namespace ride one channel,
//! `db_notify.<namespace>`, and are told apart in the process. A [`Topic`] is therefore not a channel: it may be any
//! text of 1 to 255 bytes. Subscribing and unsubscribing are done in the process, at once, without a round trip.
//!
//! What triggers and other programs NOTIFY is received as it is: [`Bus::listen`] takes a [`Channel`] of PostgreSQL's, on the
//! same connection.
//!
//! NOTIFY inside a transaction makes all such transactions commit one after the other, so the bus sends from a
//! connection of its own: at once when it was idle, then at most once in [`BusOptions::pace`], or in up to four times as long
//! where very much is said, everything that gathered meanwhile in one statement.
//!
//! # The form on the wire
//!
//! ```text
//! payload        = version ( *entry / everything )
//! version        = "1"
//! entry          = topic-length ":" payload-length ":" topic payload
//! topic-length   = the topic's bytes, decimal
//! payload-length = the payload's bytes, decimal
//! everything     = "*"            ; more was to be said than fits: look at everything again
//! ```
//!
//! The notifications `log/7` without a payload, and `a` with the payload `b`, in one NOTIFY:
//!
//! ```text
//! 15:0:log/71:1:ab
//! ││ │ │    │ │ │└─ its payload
//! ││ │ │    │ │ └── another topic
//! ││ │ │    │ └──── one byte of payload
//! ││ │ │    └────── one byte of topic
//! ││ │ └─────────── the topic; no payload follows
//! ││ └───────────── no bytes of payload
//! │└─────────────── 5 bytes of topic
//! └──────────────── version
//! ```
//!
//! One NOTIFY carries as many entries as fit into PostgreSQL's 7999 bytes, one statement at most 64 of them. A payload that is
//! not of this form, such as one of a later version, counts as a gap: something was said that cannot be read here.
//! `tests/golden/wire.txt` fixes the form, since old and new processes must agree on it. A payload with the version alone has no
//! entries: the bus sends it to itself, to see whether anything arrives.
//!
//! # Without a database
//!
//! With the feature `memory`, `MemoryLink` is a place in the process's own memory where buses meet, for tests of programs that use
//! one: [`Bus::with_link`]. It keeps the same promises, shown by the same suite of tests, and is lost when the test says so. Both are
//! a [`link::Link`], whose sessions are a [`link::Listener`] and a [`link::Sender`].
//!
//! # Features
//!
//! | feature | on by default | what it adds |
//! |---|---|---|
//! | `memory` | no | `MemoryLink`, a bus without a database, for tests of programs that use one |

mod bus;
mod delivery;
#[cfg(test)]
#[path = "../tests/golden/read.rs"]
mod golden;
mod in_tx;
pub mod link;
mod listening;
#[cfg(feature = "memory")]
mod memory;
mod name;
mod notifier;
mod options;
mod outbox;
mod postgres;
mod queue;
mod routes;
pub mod settings;
mod state;
mod subscription;
mod unreadable;
pub mod watched;
mod wire;

pub use bus::{Bus, NotifyInError, OpenError};
pub use delivery::{Delivery, Gap, GapReason, Notification, NotificationSource};
pub use in_tx::{BusExt, NotifyAfterCommit};
#[cfg(feature = "memory")]
pub use memory::{MemoryLink, MemoryListener, MemorySender};
pub use name::{Channel, NameError, Topic};
pub use notifier::NotifyError;
pub use options::{BusOptions, BusOptionsError};
pub use postgres::{PostgresLink, PostgresListener, PostgresSender};
pub use state::{BusState, Trouble};
pub use subscription::Subscription;
pub use watched::{Watch, WatchOptions, WatchedState, WatchedTopics};
