//! Which callers wait, which are served first, and which are refused.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use db_core::{AcquireError, AcquirePhase, Conn, Error, Handle, Pool, PoolOptions};
use db_testkit::{TestDb, until};
use futures_util::FutureExt;
use tokio::task::JoinHandle;

use crate::support::{PATIENCE, config};

/// A pool of two connections with this `max_waiting`.
fn pool(db: &TestDb, max_waiting: u32) -> Pool {
    let options =
        PoolOptions::named("admission").max(2).max_waiting(Some(max_waiting)).acquire_timeout(PATIENCE);
    Pool::new(&config(db), options)
}

async fn take(pool: &Pool) -> Conn {
    pool.handle().acquire().await.expect("a connection")
}

/// Starts another caller, and returns when it waits.
async fn wait(pool: &Pool) -> JoinHandle<Result<Conn, AcquireError>> {
    let before = pool.stats().waiting;
    let waiting = start(pool.handle());
    until("the caller waits", async || pool.stats().waiting > before).await;
    waiting
}

fn start(handle: Handle) -> JoinHandle<Result<Conn, AcquireError>> {
    tokio::spawn(async move { handle.acquire().await })
}

/// The phase in which a caller was refused.
async fn refused(caller: JoinHandle<Result<Conn, AcquireError>>) -> AcquirePhase {
    caller.await.expect("no panic").expect_err("refused").phase()
}

/// Acquires, and expects to be rejected immediately.
fn rejected(pool: &Pool) -> Error {
    let answer = pool.handle().acquire().now_or_never().expect("an answer at once");
    answer.map(drop).expect_err("max_waiting is reached").into()
}

#[db_testkit::test]
async fn a_caller_above_max_waiting_is_rejected_at_once_with_a_time_to_retry(db: TestDb) {
    let pool = pool(&db, 2);
    let held = [take(&pool).await, take(&pool).await];
    let waiting = [wait(&pool).await, wait(&pool).await];

    let error = rejected(&pool);

    let Error::Acquire(acquire) = &error else { panic!("{error}") };
    assert_eq!(acquire.phase(), AcquirePhase::Shed);
    assert!(error.is_transient());
    let retry_after = error.retry_after().expect("a time to wait");
    assert!((Duration::from_secs(1)..=Duration::from_secs(30)).contains(&retry_after), "{retry_after:?}");
    let text = error.to_string();
    assert!(
        text.starts_with(
            "pool `admission`: rejected immediately: 2 of 2 in use and 2 already waiting (max_waiting reached)"
        ),
        "{text}"
    );
    assert_eq!((pool.stats().totals.shed, pool.stats().totals.timed_out), (1, 0));

    drop(held);
    for one in waiting {
        one.await.expect("no panic").expect("a waiting caller is served");
    }
    assert_eq!(pool.stats().totals.shed, 1, "no other caller is rejected");
}

#[db_testkit::test]
async fn a_caller_that_gives_up_makes_room_for_another(db: TestDb) {
    let pool = pool(&db, 1);
    let held = [take(&pool).await, take(&pool).await];
    let waiting = wait(&pool).await;
    rejected(&pool);

    waiting.abort();
    until("the queue is empty", async || pool.stats().waiting == 0).await;

    let waiting = wait(&pool).await;
    drop(held);
    waiting.await.expect("no panic").expect("a connection");
}

#[db_testkit::test]
async fn callers_for_whom_a_connection_is_dialled_do_not_count_as_waiting(db: TestDb) {
    let pool = pool(&db, 0);

    let handle = pool.handle();
    let (first, second) = tokio::join!(handle.acquire(), handle.acquire());

    let held = [first.expect("a connection"), second.expect("a connection")];
    rejected(&pool);
    drop(held);
    take(&pool).await;
}

#[db_testkit::test]
async fn max_waiting_can_be_changed_while_callers_wait(db: TestDb) {
    let pool = pool(&db, 0);
    let held = [take(&pool).await, take(&pool).await];
    rejected(&pool);

    pool.set_limits(pool.limits().max_waiting(None));
    let waiting = [wait(&pool).await, wait(&pool).await, wait(&pool).await];
    pool.set_limits(pool.limits().max_waiting(Some(1)));

    rejected(&pool);
    drop(held);
    for one in waiting {
        one.await.expect("no panic").expect("a lower limit rejects no caller that waits already");
    }
}

/// Lets callers with these names join in this order while the pool is full, and returns the order in which they were served.
async fn served(pool: &Pool, callers: &[(&'static str, Handle)]) -> Vec<&'static str> {
    let held = take(pool).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = Vec::new();
    for (name, handle) in callers {
        let before = pool.stats().waiting;
        let (order, handle, name) = (Arc::clone(&order), handle.clone(), *name);
        waiting.push(tokio::spawn(async move {
            let conn = handle.acquire().await.expect("a connection");
            order.lock().expect("no panic").push(name);
            drop(conn);
        }));
        until("the caller waits", async || pool.stats().waiting > before).await;
    }
    drop(held);
    for caller in waiting {
        caller.await.expect("no panic");
    }
    Arc::into_inner(order).expect("all have ended").into_inner().expect("no panic")
}

#[db_testkit::test]
async fn urgent_callers_come_first_and_every_fourth_connection_is_for_the_oldest_of_the_others(db: TestDb) {
    let pool = Pool::new(&config(&db), PoolOptions::named("lanes").max(1).acquire_timeout(PATIENCE));
    let plain = || pool.handle();
    let callers = [
        ("p1", plain()),
        ("patient1", plain().patient()),
        ("p2", plain()),
        ("u1", plain().urgent()),
        ("u2", plain().urgent()),
        ("u3", plain().urgent()),
        ("u4", plain().urgent()),
        ("u5", plain().urgent()),
        ("u6", plain().urgent()),
        ("u7", plain().urgent()),
    ];

    let order = served(&pool, &callers).await;

    assert_eq!(order, ["u1", "u2", "u3", "p1", "u4", "u5", "u6", "patient1", "u7", "p2"]);
}

#[db_testkit::test]
async fn patient_callers_come_last_and_do_not_starve(db: TestDb) {
    let pool = Pool::new(&config(&db), PoolOptions::named("lanes").max(1).acquire_timeout(PATIENCE));
    let callers: Vec<_> =
        [("patient1", true), ("patient2", true), ("a", false), ("b", false), ("c", false), ("d", false)]
            .into_iter()
            .map(|(name, is_patient)| {
                (name, if is_patient { pool.handle().patient() } else { pool.handle() })
            })
            .collect();

    let order = served(&pool, &callers).await;

    assert_eq!(order, ["a", "b", "c", "patient1", "d", "patient2"]);
}

#[db_testkit::test]
async fn a_caller_takes_the_place_of_the_patient_one_that_came_last(db: TestDb) {
    let pool = pool(&db, 3);
    let held = [take(&pool).await, take(&pool).await];
    let mut waiting = Vec::new();
    for handle in [pool.handle().patient(), pool.handle(), pool.handle().patient()] {
        let before = pool.stats().waiting;
        waiting.push(start(handle));
        until("the caller waits", async || pool.stats().waiting > before).await;
    }
    let patient = pool.handle().patient();
    let error = patient.admit().expect_err("there is no room for it");
    assert_eq!(error.phase(), AcquirePhase::Shed);
    assert_eq!(patient.acquire().await.expect_err("nobody makes room for it").phase(), AcquirePhase::Shed);
    pool.handle().admit().expect("a patient one makes room");

    let urgent = start(pool.handle().urgent());

    assert_eq!(refused(waiting.pop().expect("the last")).await, AcquirePhase::Shed);
    let plain = start(pool.handle());
    assert_eq!(refused(waiting.remove(0)).await, AcquirePhase::Shed);
    until("both wait", async || pool.stats().waiting == 3).await;
    assert_eq!(
        rejected(&pool).retry_after(),
        Some(Duration::from_secs(1)),
        "there are no patient ones any more"
    );
    assert_eq!(pool.stats().totals.shed, 5);
    drop(held);
    for one in waiting.into_iter().chain([urgent, plain]) {
        one.await.expect("no panic").expect("a connection");
    }
}

/// A pool of one connection with this `queue_target`, and an interval of 0.3 s.
fn timed(db: &TestDb, target: Duration) -> Pool {
    let options = PoolOptions::named("timed")
        .max(1)
        .queue_target(Some(target))
        .queue_interval(Duration::from_millis(300))
        .acquire_timeout(PATIENCE);
    Pool::new(&config(db), options)
}

#[db_testkit::test]
async fn callers_are_refused_once_everybody_has_waited_for_too_long_for_an_interval(db: TestDb) {
    let target = Duration::from_millis(50);
    let pool = timed(&db, target);
    let held = take(&pool).await;
    let began = Instant::now();
    let mut waiting: Vec<_> = (0..3).map(|_| start(pool.handle())).collect();
    let patient = start(pool.handle().patient());

    for caller in waiting.drain(..).chain([patient]) {
        let error = caller.await.expect("no panic").expect_err("refused");
        assert_eq!(error.phase(), AcquirePhase::Overloaded, "{error}");
        let text = error.to_string();
        assert!(text.contains("everybody waits for longer than queue_target, 1 of 1 in use"), "{text}");
        let error = Error::from(error);
        assert!(error.is_transient() && error.retry_after().is_some(), "{error}");
    }

    let refused_after = began.elapsed();
    assert!(
        refused_after >= target + Duration::from_millis(300),
        "not before the interval: {refused_after:?}"
    );
    let totals = pool.stats().totals;
    assert_eq!((totals.shed, totals.timed_out), (4, 0));
    drop(held);
    let one = pool.handle().acquire().await.expect("an idle connection is there for everybody");
    drop(one);
    // Long enough that nothing but what was seen before could refuse anybody.
    pool.set_limits(pool.limits().queue_interval(PATIENCE));
    let held = take(&pool).await;
    let caller = start(pool.handle());
    until("the caller waits", async || pool.stats().waiting == 1).await;
    // Twice the target: it would be refused by now if the pool was still late.
    tokio::time::sleep(3 * target).await;
    drop(held);
    caller.await.expect("no panic").expect("somebody was served in time since");
}

#[db_testkit::test]
async fn a_returned_connection_goes_to_nobody_who_has_waited_for_too_long(db: TestDb) {
    let target = Duration::from_millis(20);
    let pool = timed(&db, target);
    let held = take(&pool).await;
    let handle = pool.handle();
    let mut first = Box::pin(handle.acquire());
    let mut second = Box::pin(handle.acquire());
    // They are not polled again, so only the pool can refuse them.
    assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none(), "both wait");
    tokio::time::sleep(target + Duration::from_millis(300)).await;

    drop(held);

    assert_eq!((pool.stats().waiting, pool.stats().idle), (0, 1));
    for caller in [first, second] {
        let answer = caller.now_or_never().expect("refused when the connection was returned");
        assert_eq!(answer.map(drop).expect_err("refused").phase(), AcquirePhase::Overloaded);
    }
}

#[db_testkit::test]
async fn a_wait_for_a_dial_refuses_nobody(db: TestDb) {
    let pool = timed(&db, Duration::ZERO);
    pool.set_limits(pool.limits().queue_interval(Duration::ZERO).max_idle(Some(0)));

    for _ in 0..5 {
        drop(pool.handle().acquire().await.expect("a connection is dialled for it, which takes its time"));
        until("it is closed", async || pool.stats().open == 0).await;
    }

    assert_eq!(pool.stats().totals.shed, 0);
}
