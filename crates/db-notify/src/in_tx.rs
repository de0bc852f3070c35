//! Notifications after the commit of a transaction.

use std::sync::Arc;

use db_core::{Handle, Session};

use crate::{Bus, NotifyError, Topic};

/// The bus of a [`Handle`] or of a [`Session`], such as a transaction: the bus that was [attached](db_core::Pool::attach) to its
/// pool. `db-layer` attaches it.
pub trait BusExt {
    /// The bus, if one is attached.
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

/// Notifications that are sent after the commit of a transaction, also when the outcome of the commit is unknown. Implemented for
/// [`Session`]: for a `Tx`, a part of it, and a `Conn`, where each statement commits by itself.
///
/// ```
/// # db_testkit::run(async |db| {
/// # sqlx::query("create table orders (id bigint, paid boolean)").execute(&db.pool()).await?;
/// # let config = db_core::Config::from_url(&db.url())?;
/// # let bus = db_notify::Bus::open(&config, db_notify::BusOptions::default()).await?;
/// # let pool = db_core::Pool::new(&config, db_core::PoolOptions::api());
/// # pool.attach(std::sync::Arc::new(bus));
/// use db_notify::{NotifyAfterCommit, Topic};
///
/// let topic = Topic::new("orders/17")?;
/// let mut tx = pool.handle().begin().await?;
/// sqlx::query("update orders set paid = true where id = 17").execute(&mut tx).await?;
/// tx.notify(&topic)?;
/// tx.commit().await?;
/// # Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
/// # }).unwrap();
/// ```
pub trait NotifyAfterCommit {
    /// Makes the bus notify right after the commit. The notification is not part of the transaction, so the transaction does not wait
    /// for other transactions that notify. After a rollback nothing is sent. When the outcome is unknown, the notification is sent: the
    /// answer to the commit was lost, or the future of the commit was dropped ([`Session::unless_rolled_back`]). Outside of a transaction, the bus notifies at
    /// once.
    ///
    /// **A process that is killed between the commit and its notification sends nothing**, and no other process learns of that. A
    /// reader that must not miss the notification also reads from time to time; or the writer makes the notification part of the
    /// transaction, at a price: [`Bus::notify_in`].
    ///
    /// # Errors
    ///
    /// [`NotifyError::NoBus`] when the pool has no bus. When the bus is closed before the commit, a line is logged and the transaction
    /// does not fail.
    fn notify(&mut self, topic: &Topic) -> Result<(), NotifyError> {
        self.notify_with(topic, "")
    }

    /// As [`Self::notify`], with a payload.
    ///
    /// # Errors
    ///
    /// As [`Self::notify`], and [`NotifyError::TooLong`] and [`NotifyError::Nul`] for the payload.
    fn notify_with(&mut self, topic: &Topic, payload: &str) -> Result<(), NotifyError>;
}

impl NotifyAfterCommit for Session {
    fn notify_with(&mut self, topic: &Topic, payload: &str) -> Result<(), NotifyError> {
        let bus = self.bus().ok_or(NotifyError::NoBus)?;
        crate::outbox::check(topic, payload)?;
        let (topic, payload) = (topic.clone(), payload.to_owned());
        self.unless_rolled_back(move || {
            if let Err(error) = bus.notify_soon_with(&topic, &payload) {
                tracing::warn!(
                    topic = topic.as_str(), %error,
                    "a transaction was committed, or may have been, and its notification was not sent"
                );
            }
        });
        Ok(())
    }
}
