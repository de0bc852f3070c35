//! Notifying what a transaction has done, once it is done.

use std::sync::Arc;

use db_core::{Handle, Session};

use crate::{Bus, NotifyError, Topic};

/// The bus of a [`Handle`] or a [`Session`], such as that of a transaction: the one that was [attached](db_core::Pool::attach) to its pool, as `db-layer` does.
pub trait BusExt {
    /// The bus, if the pool has one.
    fn bus(&self) -> Option<Arc<Bus>>;
}

impl BusExt for Handle {
    fn bus(&self) -> Option<Arc<Bus>> {
        self.pool().attached()
    }
}

impl BusExt for Session {
    fn bus(&self) -> Option<Arc<Bus>> {
        self.attached()
    }
}

/// Notifications that a transaction sends when it is committed, and when nobody can tell whether it is. For each
/// [`Session`]: a `Tx`, a part of it, and a `Conn`, where each statement is committed by itself.
///
/// ```no_run
/// # async fn run(pool: db_core::Pool) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use db_notify::{NotifyAfterCommit, Topic};
///
/// let topic = Topic::new("orders/17")?;
/// let mut tx = pool.handle().begin().await?;
/// sqlx::query("update orders set paid = true where id = 17").execute(&mut tx).await?;
/// tx.notify(&topic)?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
pub trait NotifyAfterCommit {
    /// Has the bus notify right after the commit, outside of the transaction, which therefore does not wait for other
    /// transactions that notify. Nothing is sent when it is rolled back. When its outcome is not known, the notification is
    /// sent: the answer was lost, or the future of the commit was dropped on the way, such as a handler's whose client hung up
    /// ([`Session::unless_rolled_back`]). Outside of a transaction, where each statement is committed by itself, the bus
    /// notifies at once.
    ///
    /// **A process that is killed between the commit and its notification sends nothing either**, and nobody is told. A reader
    /// that must not miss it also looks by itself from time to time, or the notification is made part of the transaction, at
    /// its price: [`Bus::notify_in`].
    ///
    /// # Errors
    ///
    /// [`NotifyError::NoBus`] when the pool has none. A bus that is closed before the commit is logged instead: the transaction
    /// is not to fail for it.
    fn notify(&mut self, topic: &Topic) -> Result<(), NotifyError> {
        self.notify_with(topic, "")
    }

    /// The same with a payload.
    ///
    /// # Errors
    ///
    /// And what [`Bus::notify_soon_with`] says of the payload.
    fn notify_with(&mut self, topic: &Topic, payload: &str) -> Result<(), NotifyError>;
}

impl NotifyAfterCommit for Session {
    fn notify_with(&mut self, topic: &Topic, payload: &str) -> Result<(), NotifyError> {
        let bus = self.bus().ok_or(NotifyError::NoBus)?;
        crate::outbox::check(topic, payload)?;
        let (topic, payload) = (topic.clone(), payload.to_owned());
        self.unless_rolled_back(move || {
            if let Err(error) = bus.notify_soon_with(&topic, &payload) {
                tracing::warn!(topic = topic.as_str(), %error, "committed, or perhaps, and nobody is notified");
            }
        });
        Ok(())
    }
}
