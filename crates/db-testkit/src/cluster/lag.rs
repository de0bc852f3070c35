//! How far a standby is behind.

use super::{Cluster, Member, in_time};
use crate::error::Error;
use crate::until::PAUSE;

/// How much of what the primary has written a standby does not have yet, in bytes of WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lag {
    /// What the standby has not received.
    pub unreceived: u64,
    /// What the standby has not replayed, whether received or not: what its readers do not see.
    pub unreplayed: u64,
}

impl Cluster {
    /// How far a standby is behind the primary at this moment. An idle primary also writes now and then, so that a standby
    /// that is cut off may lag without any statement.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Role`] when the member is no standby; [`Error::Connect`] and [`Error::Statement`] when it or the primary cannot
    /// be asked; [`Error::TimedOut`] after 20 seconds.
    pub async fn lag(&self, standby: &Member) -> Result<Lag, Error> {
        let number = self.standby_number(standby, "tell the lag of")?;
        in_time("the lag of a standby", async {
            let end = self.end_of_wal().await?;
            self.lag_behind(number, &end).await
        })
        .await
    }

    /// Waits until a standby has replayed all that the primary has written before this call.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// As [`lag`](Cluster::lag) has them.
    pub async fn until_caught_up(&self, standby: &Member) -> Result<(), Error> {
        let number = self.standby_number(standby, "wait for")?;
        in_time("a standby to replay what the primary has written", async {
            let end = self.end_of_wal().await?;
            while self.lag_behind(number, &end).await?.unreplayed > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            Ok(())
        })
        .await
    }

    /// Up to where the primary has written. What a commit has not waited for is included.
    pub(super) async fn end_of_wal(&self) -> Result<String, Error> {
        self.ask(self.primary, "ask for the position of", "select pg_current_wal_insert_lsn()::text").await
    }

    pub(super) async fn lag_behind(&self, number: usize, end: &str) -> Result<Lag, Error> {
        // What it received counts from the beginning of a segment, and may so be less than what it replayed.
        let behind =
            |what: &str| format!("greatest(0, pg_wal_lsn_diff('{end}', coalesce({what}, '0/0')))::int8");
        let received = behind("greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())");
        let sql = format!("select array[{received}, {}]", behind("pg_last_wal_replay_lsn()"));
        let [unreceived, unreplayed]: [i64; 2] = self.ask(number, "ask for the position of", &sql).await?;
        Ok(Lag { unreceived: unreceived.unsigned_abs(), unreplayed: unreplayed.unsigned_abs() })
    }
}
