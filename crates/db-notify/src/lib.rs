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
//! bus.notify(&topic, "paid").await?;
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
//! The first two are followed by a [`Delivery::Gap`] as soon as notifications flow again, never before. The last one
//! is not known to anybody, so a reader that must see everything also looks by itself from time to time.
//!
//! Equal notifications that wait together are sent once.
//!
//! [`Bus::lazy`] connects to nothing before somebody subscribes or notifies; such a first subscriber is told by a gap when
//! LISTEN is in force.
//!
//! # One connection, one channel
//!
//! LISTEN costs PostgreSQL time per channel and message, so all topics of a namespace ride one channel,
//! `db_notify.<namespace>`, and are told apart in the process. A [`Topic`] is therefore not a channel: it may be any
//! text of 1 to 255 bytes. Subscribing and unsubscribing are done in the process, at once, without a round trip.
//!
//! NOTIFY inside a transaction makes all such transactions commit one after the other, so the bus sends from a
//! connection of its own: at once when it was idle, then at most once in [`BusOptions::pace`], everything that gathered
//! meanwhile in one statement.
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
//! One NOTIFY carries as many entries as fit into PostgreSQL's 7999 bytes. A payload that is not of this form, such as
//! one of a later version, counts as a gap: something was said that cannot be read here.

mod bus;
mod delivery;
mod in_tx;
mod listener;
mod notifier;
mod routes;
pub mod settings;
mod topic;
mod wire;

pub use bus::{Bus, BusOptions, BusState, OpenError};
pub use delivery::{Delivery, Gap, GapReason, Notification};
pub use in_tx::{NotifyAfterCommit, OnBus};
pub use notifier::NotifyError;
pub use routes::Subscription;
pub use topic::{Topic, TopicError};
