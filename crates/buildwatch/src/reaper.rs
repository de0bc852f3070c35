//! Ends builds whose process has died.
//!
//! A process that runs a build updates its row every [`BEAT`]. Each process that watches builds checks the rows every
//! [`CHECK`], and ends a build whose row has not changed in [`MISSED`] checks in a row. Checks are counted, not seconds: while
//! the database is away nobody can update a row, but nobody can check one either.

use std::collections::HashMap;
use std::time::Duration;

use db_layer::db_events::Error;
use db_layer::{Db, LogId};
use time::OffsetDateTime;

use crate::builds;
use crate::output::End;

/// How often a process updates the row of a build that it runs.
pub(crate) const BEAT: Duration = Duration::from_secs(5);
/// How often running builds are checked.
const CHECK: Duration = Duration::from_secs(6);
/// After how many checks without a change a build is ended.
const MISSED: u32 = 5;

/// Checks running builds until it is dropped.
pub(crate) async fn run(db: Db) {
    let mut checks = HashMap::new();
    let mut tick = tokio::time::interval(CHECK);
    // Missed checks are not made up for: they would all see the same.
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match builds::running(&db).await {
            Ok(running) => {
                for (id, log) in stale(&mut checks, &running) {
                    reap(&db, id, log).await;
                }
            }
            Err(error) => tracing::debug!(%error, "cannot check running builds"),
        }
    }
}

/// Counts a check, and returns the builds to end.
fn stale(
    checks: &mut HashMap<i64, (OffsetDateTime, u32)>,
    running: &[(i64, LogId, OffsetDateTime)],
) -> Vec<(i64, LogId)> {
    checks.retain(|id, _| running.iter().any(|(other, ..)| other == id));
    let mut stale = Vec::new();
    for &(id, log, seen_at) in running {
        let (last, count) = checks.entry(id).or_insert((seen_at, 0));
        if *last == seen_at {
            *count += 1;
        } else {
            (*last, *count) = (seen_at, 1);
        }
        if *count > MISSED {
            stale.push((id, log));
        }
    }
    stale
}

async fn reap(db: &Db, id: i64, log: LogId) {
    let end = End::aborted("the process that ran it has died");
    match finish(db, id, log, &end).await {
        Ok(()) => tracing::warn!(build = id, "build ended: the process that ran it has died"),
        // Its process lives after all, or another process ended the build first.
        Err(Error::Finished { .. } | Error::Conflict { .. }) => {}
        Err(error) => tracing::warn!(build = id, %error, "cannot end a build whose process has died"),
    }
}

async fn finish(db: &Db, id: i64, log: LogId, end: &End) -> Result<(), Error> {
    let head = db.events().head(log).await?;
    finish_with(db, id, log, head.last, end).await
}

/// Ends a log after event `last`, and its build with it.
pub(crate) async fn finish_with(db: &Db, id: i64, log: LogId, last: i64, end: &End) -> Result<(), Error> {
    let row = end.clone();
    db.events()
        .writer(log, last)
        .finish_with(&[end.to_event()], move |tx| {
            let row = row.clone();
            Box::pin(async move { builds::end(tx, id, &row).await })
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    #[test]
    fn a_build_is_stale_after_enough_looks_that_saw_nothing_new() {
        let mut checks = HashMap::new();
        let silent = [(1, LogId(1), START)];

        let seen: Vec<usize> = (0..7).map(|_| stale(&mut checks, &silent).len()).collect();

        assert_eq!(seen, [0, 0, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn a_sign_of_life_starts_the_count_again() {
        let mut checks = HashMap::new();
        for second in 0..20 {
            let seen_at = START + Duration::from_secs(second / 3 * 10);
            assert_eq!(stale(&mut checks, &[(1, LogId(1), seen_at)]), []);
        }
        assert!(stale(&mut checks, &[]).is_empty() && checks.is_empty(), "an ended build is forgotten");
    }
}
