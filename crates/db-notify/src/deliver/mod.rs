//! Delivering notifications: the routes lead from topics and channels to the queues of subscriptions.

mod notification;
mod queue;
mod routes;
mod subscription;

pub use notification::{Delivery, Gap, GapReason, Notification, NotificationSource};
pub(crate) use routes::{Counts, Routes};
pub use subscription::Subscription;
