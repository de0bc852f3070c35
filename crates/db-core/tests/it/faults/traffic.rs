//! Continuous traffic during faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use db_core::{Class, Error, Pool};
use db_testkit::until;
use tokio::task::JoinSet;

use super::stage::{ask, ends};

pub(super) struct Traffic {
    callers: JoinSet<Vec<Error>>,
    answers: Arc<AtomicI64>,
    over: Arc<AtomicBool>,
}

impl Traffic {
    /// Starts this number of callers, each of which runs one statement after the other.
    pub(super) fn begin(pool: &Pool, callers: usize) -> Self {
        let (answers, over) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicBool::new(false)));
        let callers = (0..callers).map(|_| {
            let (pool, answers, over) = (pool.clone(), Arc::clone(&answers), Arc::clone(&over));
            async move {
                let mut errors = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    match ask(&pool, answers.load(Ordering::Relaxed)).await {
                        Ok(()) => _ = answers.fetch_add(1, Ordering::Relaxed),
                        Err(error) => errors.push(error),
                    }
                    tokio::task::yield_now().await;
                }
                errors
            }
        });
        Self { callers: callers.collect(), answers, over }
    }

    /// Waits until more statements are answered than before this call.
    pub(super) async fn until_answers(&self) {
        let seen = self.answers.load(Ordering::Relaxed);
        until("questions are answered", async || self.answers.load(Ordering::Relaxed) > seen + 20).await;
    }

    /// Stops the callers and awaits their last answers. Fails if a fault of the network or the server was classified as another kind of
    /// error.
    pub(super) async fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        for error in ends(self.callers.join_all()).await.into_iter().flatten() {
            match &error {
                Error::Acquire(_) => assert_eq!(error.class(), Class::NotReached, "{error}"),
                Error::Statement(_) => assert_eq!(error.class(), Class::Lost, "{error:?}"),
                Error::Deadline(_) => assert_eq!(error.class(), Class::TimedOut, "{error}"),
                _ => panic!("{error:?}"),
            }
            assert_eq!(error.is_transient(), !matches!(error, Error::Deadline(_)), "{error}");
        }
    }
}
