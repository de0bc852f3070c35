//! The phases of a shutdown, and their deadlines.

use std::future::pending;
use std::pin::pin;
use std::time::{Duration, Instant};

use db_layer::db_notify::Delivery;
use db_layer::{Db, Deadlines, Ended, NotifyAfterCommit, Options, Signals, Topic, db_events};
use db_testkit::{TestDb, poll_then_drop, until};
use tokio::time::timeout;

use crate::{PATIENCE, config, open};

const LONG: Deadlines = Deadlines { service: PATIENCE, pools: PATIENCE, bus: PATIENCE };

/// No signals, since a real one would end the other tests, too. These shutdowns begin when `closing` is cancelled.
fn none() -> Signals {
    Signals::of([]).expect("nothing to catch")
}

async fn end<F: IntoFuture>(layer: &Db, deadlines: Deadlines, service: F) -> Ended<F::Output> {
    layer.closing().cancel();
    layer.shutdown_on_signal(&mut none(), deadlines, service).await
}

#[db_testkit::test]
async fn endless_work_is_cut_off_and_named_and_takes_no_time_from_later_phases(db: TestDb) {
    let layer = db_layer::open(Options::new(config(&db))).await.expect("opened");
    let backend = layer.backend();
    let endless = tokio::spawn(async move { sqlx::query("select pg_sleep(1000)").execute(backend).await });
    db.until_sessions("the statement runs", |all| all.iter().any(|it| it.query.contains("pg_sleep"))).await;
    let deadlines = Deadlines {
        service: Duration::from_millis(300),
        pools: Duration::from_secs(2),
        bus: Duration::from_secs(5),
    };

    let started = Instant::now();
    let ended = end(&layer, deadlines, pending::<()>()).await;
    let took = started.elapsed();

    assert!(ended.service.is_none() && !ended.is_clean() && ended.exit_code() == 0, "{ended:?}");
    let closed = ended.closed.expect("no second signal");
    let [cut] = &closed.backend.aborted[..] else { panic!("{closed:?}") };
    assert!(cut.at.to_string().starts_with(file!()), "{}", cut.at);
    assert!(cut.statement.as_ref().is_some_and(|(text, _)| text.contains("pg_sleep")), "{cut}");
    assert!(closed.backend.in_time && closed.api.is_clean() && closed.bus_closed, "{closed:?}");
    assert!(
        closed.pools_took >= Duration::from_millis(1500),
        "it may go on until a quarter is left: {closed:?}"
    );
    assert!(took < deadlines.total(), "{took:?}");
    assert!(endless.await.expect("no panic").is_err(), "it was cancelled");
    db.until_sessions("none is left", <[_]>::is_empty).await;
}

#[db_testkit::test]
async fn a_service_past_its_deadline_lets_go_of_what_it_holds_before_the_pools_close(db: TestDb) {
    let layer = db_layer::open(Options::new(config(&db))).await.expect("opened");
    let handle = layer.api();
    let service = async move {
        let _held = handle.acquire().await.expect("a connection");
        pending::<()>().await;
    };

    let deadlines = Deadlines { service: Duration::from_millis(300), ..LONG };
    let ended = end(&layer, deadlines, service).await;

    assert!(ended.service.is_none(), "{ended:?}");
    assert!(ended.closed.as_ref().is_some_and(db_layer::Shutdown::is_clean), "{ended:?}");
}

#[db_testkit::test]
async fn while_the_service_has_its_time_it_has_its_pools_and_then_nobody_has(db: TestDb) {
    let layer = db_layer::open(Options::new(config(&db))).await.expect("opened");
    let service = async {
        layer.closing().cancelled().await;
        let one: i32 = sqlx::query_scalar("select 1").fetch_one(layer.api()).await.expect("an open pool");
        one
    };

    let ended = end(&layer, LONG, service).await;

    assert!(ended.service == Some(1) && ended.is_clean(), "{ended:?}");
    for handle in [layer.api(), layer.backend()] {
        let refused = handle.acquire().await.expect_err("closed");
        assert!(refused.is_closed(), "{refused}");
    }
    db.until_sessions("none is left", <[_]>::is_empty).await;
}

#[db_testkit::test]
async fn a_service_that_ends_by_itself_ends_its_database_too(db: TestDb) {
    let layer = db_layer::open(Options::new(config(&db))).await.expect("opened");

    let ended = layer.shutdown_on_signal(&mut none(), LONG, async { 7 }).await;

    assert!(ended.service == Some(7) && ended.first_signal.is_none() && ended.is_clean(), "{ended:?}");
    assert!(layer.closing().is_cancelled());
    db.until_sessions("none is left", <[_]>::is_empty).await;
}

#[db_testkit::test]
async fn a_stream_that_outlives_the_pools_ends_and_says_why(db: TestDb) {
    let layer = open(&db).await;
    let log = layer.events().create().await.expect("a log");
    let mut stream = layer.events().stream(log, 0);
    let end_of_stream = tokio::spawn(async move { stream.next_batch().await });

    let report = layer.shutdown(PATIENCE).await;

    assert!(report.is_clean(), "{report:?}");
    let end = timeout(PATIENCE, end_of_stream).await.expect("it ends").expect("no panic");
    assert!(
        matches!(&end, Err(db_events::Error::Database { cause: db_layer::Error::Acquire(refused), .. }) if refused.is_closed()),
        "{end:?}"
    );
}

/// Dropped in each of the three phases: while the service runs, while a connection is checked out, and at every later await.
#[db_testkit::test]
async fn a_shutdown_that_was_dropped_midway_is_called_again_and_goes_on(db: TestDb) {
    let layer = db_layer::open(Options::new(config(&db))).await.expect("opened");
    let other = db_layer::open(Options::new(config(&db))).await.expect("opened");
    let topic = Topic::new("orders").expect("a topic");
    let mut heard = other.bus().subscribe(&topic, 10);
    let mut tx = layer.backend().begin().await.expect("begun");
    tx.notify_with(&topic, "paid").expect("accepted");
    let (finish, finished) = tokio::sync::oneshot::channel::<()>();
    let mut service = pin!(finished);
    layer.closing().cancel();

    let early = poll_then_drop(layer.shutdown_on_signal(&mut none(), LONG, service.as_mut()), 1).await;
    assert!(early.is_none(), "the service runs: {early:?}");
    let one: i32 = sqlx::query_scalar("select 1").fetch_one(layer.api()).await.expect("an open pool");
    finish.send(()).expect("the service waits for it");
    {
        let mut signals = none();
        let mut ending = pin!(layer.shutdown_on_signal(&mut signals, LONG, service.as_mut()));
        let closing = until("the pools are closed to new work", async || {
            layer.api().acquire().await.is_err_and(|error| error.is_closed())
        });
        tokio::select! {
            early = &mut ending => panic!("a transaction is open: {early:?}"),
            () = closing => {}
        }
    }
    tx.commit().await.expect("the transaction may still be finished");
    let (mut signals, mut polls) = (none(), 0);
    let ended = loop {
        polls += 1;
        let ending = layer.shutdown_on_signal(&mut signals, LONG, async { one });
        if let Some(ended) = poll_then_drop(ending, polls).await {
            break ended;
        }
    };

    assert!(polls > 1 && ended.service == Some(1) && ended.is_clean(), "{polls}: {ended:?}");
    let delivery = timeout(PATIENCE, heard.recv()).await.expect("in time").expect("an open bus");
    assert!(matches!(&delivery, Delivery::Notification(paid) if paid.payload() == "paid"), "{delivery:?}");
}
