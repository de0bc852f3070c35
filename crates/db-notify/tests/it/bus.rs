//! The bus on a real PostgreSQL, and in paused time: facts beyond those of the conformance suite.

use std::time::{Duration, Instant};

use db_core::Config;
use db_notify::{Bus, BusOptions, BusOptionsError, Delivery, GapReason, MemoryLink};
use db_testkit::{Session, TestDb, poll_then_drop};
use tokio::time;

use crate::support::{PATIENCE, bus, channel, config, gap, kill, next, payload, topic};

#[db_testkit::test]
async fn a_notifier_sends_after_its_session_was_lost(db: TestDb) {
    let bus = bus(&db).await;
    let mut subscription = bus.subscribe(&topic("t"), 10);
    bus.notify_with(&topic("t"), "1").await.expect("sent");
    assert_eq!(payload(&mut subscription).await, "1");

    kill(&db, "notifier").await;

    bus.notify_with(&topic("t"), "2").await.expect("sent");
    assert_eq!(payload(&mut subscription).await, "2");
}

#[db_testkit::test]
async fn the_heartbeat_notices_a_silent_session(_db: TestDb) {
    let server = db_testkit::TestServer::throwaway().await.expect("a server");
    let db = server.empty().await.expect("a database");
    let options = BusOptions::default().heartbeat(Duration::from_millis(100));
    let bus = Bus::open(&config(&db), options).await.expect("a bus");
    let mut subscription = bus.subscribe(&topic("t"), 10);
    let pid: i32 = sqlx::query_scalar("select pid from pg_stat_activity where application_name = 'bus'")
        .fetch_one(&db.pool())
        .await
        .expect("the listening session");
    let signal = |name: &str| {
        let status = std::process::Command::new("kill").args(["-s", name, &pid.to_string()]).status();
        assert!(status.expect("kill runs").success(), "{name}");
    };

    signal("STOP");
    let delivery = next(&mut subscription).await;
    signal("CONT");

    assert!(matches!(delivery, Delivery::Gap(gap) if gap.reason == GapReason::Reconnected), "{delivery:?}");
    bus.notify_with(&topic("t"), "after").await.expect("sent");
    assert_eq!(payload(&mut subscription).await, "after");
}

#[db_testkit::test]
async fn the_bus_unlistens_from_a_channel_without_subscribers(db: TestDb) {
    let bus = bus(&db).await;
    let (mut first, second) = (bus.listen(&channel("jobs"), 1), bus.listen(&channel("jobs"), 1));
    assert_eq!(gap(&mut first).await, GapReason::Started);
    let last = |sessions: &[Session]| {
        let listening = sessions.iter().find(|session| session.application_name == "bus");
        listening.map(|session| session.query.clone()).unwrap_or_default()
    };

    drop(first);
    let mut other = bus.listen(&channel("other"), 1);
    assert_eq!(gap(&mut other).await, GapReason::Started);
    let now = last(&db.sessions().await.expect("sessions"));
    assert!(!now.contains("UNLISTEN"), "somebody still listens: {now}");

    drop(second);
    db.until_sessions("UNLISTEN", |all| last(all) == "UNLISTEN \"jobs\";").await;
}

#[db_testkit::test]
async fn a_dropped_close_goes_on_and_sends_what_waits(db: TestDb) {
    let (closing, other) = (bus(&db).await, bus(&db).await);
    let mut heard = other.subscribe(&topic("t"), 10);
    closing.notify_soon_with(&topic("t"), "last").expect("accepted");

    assert_eq!(poll_then_drop(closing.close(PATIENCE), 1).await, None, "it has to be sent first");

    assert_eq!(payload(&mut heard).await, "last");
    assert!(closing.close(PATIENCE).await, "in time");
}

#[db_testkit::test]
async fn every_close_of_a_bus_that_was_aborted_returns_false(db: TestDb) {
    let proxy = db_testkit::Proxy::start(&db).expect("a proxy");
    let config = Config::from_url(&proxy.url()).expect("the proxy's address");
    let closing = Bus::open(&config, BusOptions::default()).await.expect("listening");
    // Else the answer may come before the close begins.
    proxy.freeze();
    closing.notify_soon_with(&topic("t"), "last").expect("accepted");

    assert!(!closing.close(Duration::ZERO).await, "there was no time for anything");
    assert!(!closing.close(PATIENCE).await, "asked again");
}

#[tokio::test]
async fn an_attempt_to_listen_has_the_connect_timeout_of_the_address() {
    // Accepts connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("an address").port();
    let within = async |parameters: &str| {
        let address = format!("postgres://app@127.0.0.1:{port}/shop{parameters}");
        let config = Config::from_url(&address).expect("an address");
        let started = Instant::now();
        let error = Bus::open(&config, BusOptions::default()).await.expect_err("nobody answers");
        assert!(!error.is_final(), "{error}");
        started.elapsed().as_secs_f64()
    };

    let (usual, short, long) =
        tokio::join!(within(""), within("?connect_timeout=1"), within("?connect_timeout=7"));

    assert!(short >= 1.0 && short < usual && usual < long && long >= 7.0, "{short} {usual} {long}");
}

#[db_testkit::test]
async fn a_namespace_too_long_for_a_channel_is_refused(db: TestDb) {
    for namespace in [String::new(), "x".repeat(54), "a\0b".to_owned()] {
        let options = BusOptions::default().namespace(namespace);
        assert!(Bus::open(&config(&db), options).await.is_err());
    }
}

#[db_testkit::test]
async fn a_lazy_bus_listens_at_the_first_subscription_and_sends_before(db: TestDb) {
    let heard = bus(&db).await;
    let mut orders = heard.subscribe(&topic("orders"), 10);
    let lazy = Bus::lazy(&config(&db), &BusOptions::default()).expect("a bus");
    let namespace = BusOptions::default().namespace(String::new());
    assert!(matches!(
        Bus::lazy(&config(&db), &namespace),
        Err(db_notify::OpenError::Options(BusOptionsError::Namespace))
    ));
    let sessions = |sessions: &[Session], name: &str| {
        sessions.iter().filter(|session| session.application_name == name).count()
    };

    lazy.notify_with(&topic("orders"), "paid").await.expect("sent");
    assert_eq!(payload(&mut orders).await, "paid");
    let now = db.sessions().await.expect("sessions");
    assert_eq!((sessions(&now, "bus"), sessions(&now, "notifier")), (1, 2), "the other one has two: {now:?}");
    assert!(!lazy.state().is_connected());

    let mut late = [lazy.subscribe(&topic("orders"), 10), lazy.subscribe(&topic("orders"), 10)];
    for subscription in &mut late {
        let delivery = next(subscription).await;
        assert!(matches!(&delivery, Delivery::Gap(gap) if gap.reason == GapReason::Started), "{delivery:?}");
        assert!(lazy.state().is_connected());
        heard.notify_with(&topic("orders"), "sent").await.expect("sent");
        assert_eq!(payload(subscription).await, "sent");
    }
    let now = db.sessions().await.expect("sessions");
    assert_eq!(sessions(&now, "bus"), 2, "one of each: {now:?}");
    assert!(lazy.close(PATIENCE).await && heard.close(PATIENCE).await);
}

#[db_testkit::test]
async fn the_gap_of_a_lazy_bus_comes_when_listen_is_in_force(db: TestDb) {
    let proxy = db_testkit::Proxy::start(&db).expect("a proxy");
    let config = Config::from_url(&proxy.url()).expect("the proxy's address");
    let lazy = Bus::lazy(&config, &BusOptions::default()).expect("a bus");
    assert_eq!(proxy.accepted(), 0);
    proxy.freeze();

    let mut early = lazy.subscribe(&topic("t"), 10);
    db_testkit::until("it dials", async || proxy.accepted() > 0).await;
    // Sent while the bus does not listen: the gap covers this notification.
    bus(&db).await.notify_with(&topic("t"), "missed").await.expect("sent");
    assert_eq!(futures_util::FutureExt::now_or_never(early.recv()), None);
    assert!(!lazy.state().is_connected());

    proxy.thaw();
    let delivery = next(&mut early).await;
    assert!(matches!(&delivery, Delivery::Gap(gap) if gap.reason == GapReason::Started), "{delivery:?}");
    bus(&db).await.notify_with(&topic("t"), "heard").await.expect("sent");
    assert_eq!(payload(&mut early).await, "heard");
}

#[db_testkit::test]
async fn a_lazy_bus_retries_and_can_be_closed_before_it_listens(db: TestDb) {
    let proxy = db_testkit::Proxy::start(&db).expect("a proxy");
    let config = Config::from_url(&proxy.url()).expect("the proxy's address");
    let never = Bus::lazy(&config, &BusOptions::default()).expect("a bus");
    assert!(never.close(PATIENCE).await, "nobody used it");
    assert_eq!(never.subscribe(&topic("t"), 1).recv().await, None);

    let lazy = Bus::lazy(&config, &BusOptions::default()).expect("a bus");
    proxy.refuse();
    let mut early = lazy.subscribe(&topic("t"), 1);
    db_testkit::until("it was turned away twice", async || proxy.refused() >= 2).await;
    proxy.heal();
    assert!(matches!(next(&mut early).await, Delivery::Gap(_)));

    let lazy = Bus::lazy(&config, &BusOptions::default()).expect("a bus");
    proxy.refuse();
    let mut early = lazy.subscribe(&topic("t"), 1);
    assert!(lazy.close(PATIENCE).await, "while it was trying");
    assert_eq!(early.recv().await, None);
}

#[tokio::test(start_paused = true)]
async fn an_idle_bus_sends_at_once_and_a_busy_one_at_its_pace() {
    let pace = Duration::from_mins(10);
    let options = BusOptions::default().pace(pace);
    let bus = Bus::with_link(MemoryLink::new(), options).await.expect("a bus");
    let begun = time::Instant::now();
    let sent = async || {
        bus.notify(&topic("t")).await.expect("sent");
        begun.elapsed()
    };
    let soon = Duration::from_secs(1);

    assert!(sent().await < soon);
    assert!((pace..pace + soon).contains(&sent().await));
    time::sleep(2 * pace).await;
    assert!((3 * pace..3 * pace + soon).contains(&sent().await), "it was idle again");
}

#[tokio::test(start_paused = true)]
async fn the_pace_grows_with_the_calls_of_a_batch() {
    let pace = Duration::from_mins(10);
    let options = BusOptions::default().pace(pace);
    let bus = Bus::with_link(MemoryLink::new(), options).await.expect("a bus");
    let soon = Duration::from_secs(1);

    for (calls, times) in [(1, 1), (15, 1), (16, 2), (47, 3), (1000, 4)] {
        // The pause of the batch before is over.
        time::sleep(5 * pace).await;
        let begun = time::Instant::now();
        for _ in 0..calls {
            bus.notify_soon(&topic("t")).expect("an open bus");
        }
        time::sleep(soon).await;

        bus.notify(&topic("t")).await.expect("sent");

        let waited = begun.elapsed();
        assert!((times * pace..times * pace + soon).contains(&waited), "{waited:?} after {calls} calls");
    }
}
