//! A notification bus on PostgreSQL's LISTEN and NOTIFY.
//!
//! ```
//! # db_testkit::run(async |db| {
//! # let config = db_core::Config::from_url(&db.url())?;
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
//!         Delivery::Gap(gap) => println!("read again: {gap}"),
//!     }
//! #   break;
//! }
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! # What is promised, and what is not
//!
//! A notification means "read again", not "here is the data". It may be lost in three cases: while the listening session is lost, when
//! the queue of a subscription is full, and when the sending process is killed between its commit and its notification.
//!
//! * In the first two cases the subscription delivers a [`Delivery::Gap`] as soon as notifications arrive again, and not before. A
//!   subscriber that reads after the gap misses nothing.
//! * **In the third case nobody learns of the loss.** A reader that must see everything also reads from time to time, as `db-events`
//!   does every 5 s; or the writer pays for [`Bus::notify_in`], which is exact.
//!
//! Equal notifications that wait together are sent once, in the place of the last of them. Notifications of one process arrive in
//! their order, with one exception. When the answer to a statement that notifies is late or lost, the bus cannot know whether the
//! server ran the statement, and sends it again on another session. If the server ran both, the notifications arrive twice, the second
//! time perhaps after later ones. Without the repetition, they would be lost in all other cases, without a gap. So a payload should say
//! what to read, and not what was written.
//!
//! A heartbeat notices a listening session that was lost silently, within [`BusOptions::heartbeat`] and [`BusOptions::answer`]; while
//! a LISTEN is under way, 5 s take the place of a shorter `answer`. The bus logs trouble once when it begins and once when it ends;
//! [`Bus::state`] shows it meanwhile.
//!
//! [`Bus::lazy`] connects at the first subscription or notification. The first subscription receives a gap when LISTEN is in force.
//!
//! # How to notify
//!
//! | call | sent | costs the writer |
//! |---|---|---|
//! | [`bus.notify(topic).await`](Bus::notify) | before it returns | a round trip, and the pace |
//! | [`bus.notify_soon(topic)`](Bus::notify_soon) | soon, or when the server is back | nothing |
//! | [`tx.notify(topic)`](NotifyAfterCommit::notify) | soon after the commit, or when its outcome is unknown | nothing |
//! | [`bus.notify_in(&mut tx, …)`](Bus::notify_in) | by the commit itself | all such commits wait for each other |
//! | [`watched.notify(topic)`](WatchedTopics::notify) | soon, if a process watches the topic | nothing |
//!
//! # One connection, one channel
//!
//! LISTEN costs PostgreSQL time for each channel and notification. So all topics of a namespace use one channel,
//! `db_notify.<namespace>`, and the process tells the topics apart. A [`Topic`] is therefore not a channel: it is any text of 1 to 255
//! bytes. Subscribing and unsubscribing happen in the process, at once, without a round trip.
//!
//! [`Bus::listen`] receives what triggers and other programs NOTIFY. It takes a [`Channel`] of PostgreSQL, and uses the same
//! connection.
//!
//! Transactions with a NOTIFY commit one after the other. So the bus sends from a connection of its own. It sends at once when it was
//! idle, and then one batch in each [`BusOptions::pace`], or in up to four times the pace after a batch of many calls. A batch holds
//! all that gathered meanwhile.
//!
//! An [`Observer`] hears of gaps and of batches; [`BusState`] has the totals.
//!
//! # The form on the wire
//!
//! ```text
//! payload        = version ( *entry / everything )
//! version        = "1"
//! entry          = topic-length ":" payload-length ":" topic payload
//! topic-length   = the length of the topic in bytes, decimal
//! payload-length = the length of the payload in bytes, decimal
//! everything     = "*"            ; there were more notifications than fit: read all data again
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
//! One NOTIFY carries as many entries as fit into PostgreSQL's 7999 bytes, and one statement at most 64 NOTIFYs. A payload of another
//! form, such as one of a later version, causes a gap, since this process cannot read what was notified. `tests/golden/wire.txt`
//! fixes the form, since old and new processes must agree on it. A payload of the version alone has no entries: the bus sends it to
//! itself, to check that notifications arrive.
//!
//! # Without a database
//!
//! With the feature `memory`, `MemoryLink` exchanges notifications within the memory of the process, for tests of programs that use a
//! bus: [`Bus::with_link`]. It keeps the same promises, which the same suite of tests checks, and loses sessions when the test says so.
//! Both links are a [`link::Link`], whose sessions are a [`link::Listener`] and a [`link::Sender`].
//!
//! # Features
//!
//! | feature | on by default | what it adds |
//! |---|---|---|
//! | `memory` | no | `MemoryLink`, a bus without a database, for tests of programs that use a bus |

mod bus;
mod class;
mod deliver;
mod error;
#[cfg(test)]
#[path = "../tests/golden/read.rs"]
mod golden;
mod in_tx;
pub mod link;
mod listen;
mod name;
mod notifier;
mod observer;
mod options;
mod outbox;
pub mod settings;
mod shared;
mod state;
pub mod watched;
mod wire;

pub use bus::Bus;
pub use deliver::{Delivery, Gap, GapReason, Notification, NotificationSource, Subscription};
pub use error::{BusOptionsError, NameError, NotifyError, NotifyInError, OpenError};
pub use in_tx::{BusExt, NotifyAfterCommit};
#[cfg(feature = "memory")]
pub use link::memory::{MemoryLink, MemoryListener, MemorySender};
pub use link::postgres::{PostgresLink, PostgresListener, PostgresSender};
pub use name::{Channel, Topic};
pub use observer::{Flushed, Observer};
pub use options::BusOptions;
pub use state::{BusState, GapTotals, Trouble};
pub use watched::{Watch, WatchOptions, WatchedState, WatchedTopics};
