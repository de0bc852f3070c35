//! Ending builds whose process is gone.
//!
//! A process that runs a build writes down every [`BEAT`] that it is there. Whoever watches builds looks at that from time
//! to time, and ends a build for which nothing new was written during [`PATIENCE`] looks in a row. Looks are counted, not
//! seconds: while the database is away nobody can write, but nobody can look either.

use std::collections::HashMap;
use std::time::Duration;

use db_layer::db_events::Error;
use db_layer::{Db, LogId};
use time::OffsetDateTime;

use crate::builds;
use crate::output::End;

/// How often the process that runs a build says that it is there.
pub(crate) const BEAT: Duration = Duration::from_secs(5);
/// How often running builds are looked at.
const LOOK: Duration = Duration::from_secs(6);
/// After how many looks without anything new a build is ended.
const PATIENCE: u32 = 5;

/// Looks at running builds until it is dropped.
pub(crate) async fn run(db: Db) {
    let mut looks = HashMap::new();
    let mut tick = tokio::time::interval(LOOK);
    // After a pause, no looks are made up for: they would all see the same.
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match builds::running(&db).await {
            Ok(running) => {
                for (id, log) in stale(&mut looks, &running) {
                    reap(&db, id, log).await;
                }
            }
            Err(error) => tracing::debug!(%error, "cannot look at running builds"),
        }
    }
}

/// Counts a look, and says which builds have had enough.
fn stale(
    looks: &mut HashMap<i64, (OffsetDateTime, u32)>,
    running: &[(i64, LogId, OffsetDateTime)],
) -> Vec<(i64, LogId)> {
    looks.retain(|id, _| running.iter().any(|(other, ..)| other == id));
    let mut stale = Vec::new();
    for &(id, log, seen_at) in running {
        let (last, count) = looks.entry(id).or_insert((seen_at, 0));
        if *last == seen_at {
            *count += 1;
        } else {
            (*last, *count) = (seen_at, 1);
        }
        if *count > PATIENCE {
            stale.push((id, log));
        }
    }
    stale
}

async fn reap(db: &Db, id: i64, log: LogId) {
    let end = End::aborted("the process that ran it is gone");
    match finish(db, id, log, &end).await {
        Ok(()) => tracing::warn!(build = id, "ended: the process that ran it is gone"),
        // It was there after all, or somebody else was quicker.
        Err(Error::Finished { .. } | Error::Conflict { .. }) => {}
        Err(error) => tracing::warn!(build = id, %error, "cannot end a build whose process is gone"),
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
        let mut looks = HashMap::new();
        let silent = [(1, LogId(1), START)];

        let seen: Vec<usize> = (0..7).map(|_| stale(&mut looks, &silent).len()).collect();

        assert_eq!(seen, [0, 0, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn a_sign_of_life_starts_the_count_again() {
        let mut looks = HashMap::new();
        for second in 0..20 {
            let seen_at = START + Duration::from_secs(second / 3 * 10);
            assert_eq!(stale(&mut looks, &[(1, LogId(1), seen_at)]), []);
        }
        assert!(stale(&mut looks, &[]).is_empty() && looks.is_empty(), "an ended build is forgotten");
    }
}
