//! What observers of a bus hear, and what is counted for those who come later.

use std::sync::{Arc, Mutex, PoisonError};

use db_notify::{Bus, BusOptions, Delivery, Flushed, Gap, GapReason, Observer};
use db_testkit::{TestDb, until};

use crate::support::{channel, config, gap, kill, next, payload, topic};

#[derive(Debug, Default)]
struct Ear {
    gaps: Mutex<Vec<GapReason>>,
    flushed: Mutex<Vec<Flushed>>,
}

impl Ear {
    fn gaps(&self) -> Vec<GapReason> {
        self.gaps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn flushed(&self) -> Vec<Flushed> {
        self.flushed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Observer for Ear {
    fn gap(&self, gap: Gap) {
        self.gaps.lock().unwrap_or_else(PoisonError::into_inner).push(gap.reason);
    }

    fn flushed(&self, flushed: &Flushed) {
        self.flushed.lock().unwrap_or_else(PoisonError::into_inner).push(*flushed);
    }
}

#[db_testkit::test]
async fn each_gap_that_a_subscription_receives_is_told_and_counted_by_its_reason(db: TestDb) {
    let ear = Arc::new(Ear::default());
    let bus = Bus::open(&config(&db), BusOptions::default().observer(ear.clone())).await.expect("a bus");
    let mut small = bus.subscribe(&topic("t"), 1);
    let mut started = bus.listen(&channel("jobs"), 1);
    assert_eq!(gap(&mut started).await, GapReason::Started);

    for text in ["1", "2", "3"] {
        bus.notify_with(&topic("t"), text).await.expect("sent");
    }
    until("two did not fit", async || bus.state().lagged == 2).await;
    assert_eq!(payload(&mut small).await, "1");
    let lagged = Delivery::Gap(Gap { reason: GapReason::Lagged, missed: Some(2) });
    assert_eq!(next(&mut small).await, lagged);

    kill(&db, "bus").await;
    assert_eq!(gap(&mut small).await, GapReason::Reconnected);
    assert_eq!(gap(&mut started).await, GapReason::Reconnected);

    let told = [GapReason::Started, GapReason::Lagged, GapReason::Reconnected, GapReason::Reconnected];
    assert_eq!(ear.gaps(), told);
    let state = bus.state();
    for reason in GapReason::ALL {
        let expected = told.iter().filter(|it| **it == reason).count() as u64;
        assert_eq!(state.received_gaps.of(reason), expected, "{reason:?}");
    }
    assert_eq!(state.gaps, 1, "one for all");
}

#[db_testkit::test]
async fn each_batch_is_told_with_what_it_stands_for(db: TestDb) {
    let bus = Bus::open(&config(&db), BusOptions::default()).await.expect("a bus");
    bus.notify(&topic("before")).await.expect("sent");
    let ear = Arc::new(Ear::default());
    bus.observe(ear.clone());

    for _ in 0..3 {
        bus.notify_soon(&topic("t")).expect("accepted");
    }
    bus.notify(&topic("u")).await.expect("sent");

    until("all are told", async || {
        let flushed = ear.flushed();
        let sum = |of: fn(&Flushed) -> usize| flushed.iter().map(of).sum::<usize>();
        assert!(flushed.iter().all(|batch| !batch.took.is_zero()), "{flushed:?}");
        sum(|batch| batch.calls) == 4 && sum(|batch| batch.notifications) as u64 == bus.state().sent - 1
    })
    .await;
}
