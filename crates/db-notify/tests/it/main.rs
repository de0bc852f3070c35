//! What `db-notify` promises, shown on a real PostgreSQL.

use std::time::{Duration, Instant};

use db_core::Config;
use db_notify::{Bus, BusOptions, Delivery, GapReason, NotifyError, Subscription, Topic};
use db_testkit::{TestDb, poll_then_drop};
use tokio::time::timeout;

/// No wait in these tests is longer than this.
const PATIENCE: Duration = Duration::from_secs(20);

fn config(db: &TestDb) -> Config {
    Config::from_url(&db.url()).expect("the test database's address")
}

async fn bus(db: &TestDb) -> Bus {
    Bus::open(&config(db), BusOptions::default()).await.expect("a bus")
}

fn topic(name: &str) -> Topic {
    Topic::new(name).expect("a topic")
}

async fn next(subscription: &mut Subscription) -> Delivery {
    timeout(PATIENCE, subscription.recv()).await.expect("a delivery in time").expect("an open bus")
}

async fn payload(subscription: &mut Subscription) -> String {
    match next(subscription).await {
        Delivery::Notification(notification) => notification.payload().to_owned(),
        Delivery::Gap(gap) => panic!("a gap: {gap}"),
    }
}

/// Ends the sessions of an application on the test's database, and waits until they are gone.
async fn kill(db: &TestDb, application: &str) {
    let killed: i64 = sqlx::query_scalar(
        "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity
         where datname = current_database() and application_name = $1",
    )
    .bind(application)
    .fetch_one(&db.pool())
    .await
    .expect("killed");
    assert!(killed > 0, "nobody was called {application}");
}

#[db_testkit::test]
async fn what_one_process_notifies_another_receives(db: TestDb) {
    let (here, there) = (bus(&db).await, bus(&db).await);
    let odd = topic("Straße 'x\"; $$ 🦀\n");
    let mut orders = there.subscribe(&topic("orders"), 10);
    let mut strange = there.subscribe(&odd, 10);

    here.notify(&topic("orders"), "paid").await.expect("sent");
    here.notify(&topic("Orders"), "another topic").await.expect("sent");
    here.notify(&odd, "ü").await.expect("sent");
    here.notify(&topic("orders"), "").await.expect("sent");

    assert_eq!(payload(&mut orders).await, "paid");
    assert_eq!(payload(&mut strange).await, "ü");
    assert_eq!(payload(&mut orders).await, "");
}

#[db_testkit::test]
async fn namespaces_do_not_hear_each_other(db: TestDb) {
    let ours = bus(&db).await;
    let options = BusOptions { namespace: "other's".to_owned(), ..BusOptions::default() };
    let theirs = Bus::open(&config(&db), options).await.expect("a bus");
    let mut subscription = ours.subscribe(&topic("t"), 10);

    theirs.notify(&topic("t"), "theirs").await.expect("sent");
    ours.notify(&topic("t"), "ours").await.expect("sent");

    assert_eq!(payload(&mut subscription).await, "ours");
}

#[db_testkit::test]
async fn dropping_a_subscription_unlistens(db: TestDb) {
    let bus = bus(&db).await;
    let first = bus.subscribe(&topic("a"), 1);
    let second = bus.subscribe(&topic("b"), 1);
    assert_eq!((bus.state().topics, bus.state().subscribers), (2, 2));

    drop(first);
    assert_eq!((bus.state().topics, bus.state().subscribers), (1, 1));
    drop(second);
    assert_eq!((bus.state().topics, bus.state().subscribers), (0, 0));
}

#[db_testkit::test]
async fn a_lost_connection_delivers_a_gap_to_every_subscription_and_then_notifications_again(db: TestDb) {
    let bus = bus(&db).await;
    let mut subscriptions = [bus.subscribe(&topic("a"), 10), bus.subscribe(&topic("b"), 10)];

    for round in 1..=3 {
        kill(&db, "bus").await;

        for subscription in &mut subscriptions {
            match next(subscription).await {
                Delivery::Gap(gap) => assert_eq!(gap.reason, GapReason::Reconnected),
                Delivery::Notification(other) => panic!("{other:?}"),
            }
            // After the gap LISTEN is in force: nothing sent from here on is lost.
            bus.notify(subscription.topic(), "after").await.expect("sent");
            assert_eq!(payload(subscription).await, "after");
        }
        assert_eq!(bus.state().gaps, round);
        assert!(bus.state().connected);
    }
}

#[db_testkit::test]
async fn a_notifier_that_lost_its_connection_sends_all_the_same(db: TestDb) {
    let bus = bus(&db).await;
    let mut subscription = bus.subscribe(&topic("t"), 10);
    bus.notify(&topic("t"), "1").await.expect("sent");
    assert_eq!(payload(&mut subscription).await, "1");

    kill(&db, "notifier").await;

    bus.notify(&topic("t"), "2").await.expect("sent");
    assert_eq!(payload(&mut subscription).await, "2");
}

#[db_testkit::test]
async fn a_link_that_falls_silent_is_noticed_by_the_heartbeat(_db: TestDb) {
    let server = db_testkit::TestServer::throwaway().await.expect("a server");
    let db = server.empty().await.expect("a database");
    let options = BusOptions { heartbeat: Duration::from_millis(100), ..BusOptions::default() };
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
    bus.notify(&topic("t"), "after").await.expect("sent");
    assert_eq!(payload(&mut subscription).await, "after");
}

#[db_testkit::test]
async fn a_payload_of_another_form_is_a_gap_and_not_silence(db: TestDb) {
    let bus = bus(&db).await;
    let mut subscription = bus.subscribe(&topic("t"), 10);

    sqlx::query("select pg_notify('db_notify.default', '9 of a later version')")
        .execute(&db.pool())
        .await
        .expect("sent");

    assert!(
        matches!(next(&mut subscription).await, Delivery::Gap(gap) if gap.reason == GapReason::Unreadable)
    );
}

#[db_testkit::test]
async fn the_longest_payload_arrives_and_a_longer_one_is_refused_at_the_call(db: TestDb) {
    let bus = bus(&db).await;
    let long = topic(&"t".repeat(Topic::MAX_BYTES));
    let mut subscription = bus.subscribe(&long, 10);
    let Err(NotifyError::TooLong { limit, .. }) = bus.notify(&long, &"x".repeat(8000)).await else {
        panic!("8000 bytes were not refused")
    };

    bus.notify(&long, &"x".repeat(limit)).await.expect("sent");

    assert_eq!(payload(&mut subscription).await.len(), limit);
}

#[db_testkit::test]
async fn closing_sends_what_waits_and_ends_subscriptions(db: TestDb) {
    let (closing, other) = (bus(&db).await, bus(&db).await);
    let mut ours = closing.subscribe(&topic("ours"), 10);
    let mut others = other.subscribe(&topic("t"), 10);
    closing.notify_soon(&topic("t"), "last").expect("taken");

    assert!(closing.close(PATIENCE).await, "in time");

    assert_eq!(payload(&mut others).await, "last");
    assert_eq!(timeout(PATIENCE, ours.recv()).await.expect("in time"), None);
    assert_eq!(closing.notify(&topic("t"), "too late").await, Err(NotifyError::Closed));
    assert!(closing.close(PATIENCE).await, "asked again");
    let names: Vec<String> = sqlx::query_scalar(
        "select application_name from pg_stat_activity
         where datname = current_database() and application_name in ('bus', 'notifier')
         order by 1",
    )
    .fetch_all(&db.pool())
    .await
    .expect("sessions");
    assert_eq!(names, ["bus", "notifier"], "the other one's");
}

#[db_testkit::test]
async fn closing_that_was_given_up_goes_on_and_sends_what_waits(db: TestDb) {
    let (closing, other) = (bus(&db).await, bus(&db).await);
    let mut heard = other.subscribe(&topic("t"), 10);
    closing.notify_soon(&topic("t"), "last").expect("accepted");

    assert_eq!(poll_then_drop(closing.close(PATIENCE), 1).await, None, "it has to be sent first");

    assert_eq!(payload(&mut heard).await, "last");
    assert!(closing.close(PATIENCE).await, "in time");
}

#[db_testkit::test]
async fn a_bus_that_was_cut_says_so_however_often_it_is_asked(db: TestDb) {
    let closing = bus(&db).await;
    closing.notify_soon(&topic("t"), "last").expect("accepted");

    assert!(!closing.close(Duration::ZERO).await, "there was no time for anything");
    assert!(!closing.close(PATIENCE).await, "asked again");
}

#[db_testkit::test]
async fn dropping_the_last_handle_ends_subscriptions_and_connections(db: TestDb) {
    let bus = bus(&db).await;
    let clone = bus.clone();
    let mut subscription = bus.subscribe(&topic("t"), 1);
    drop(bus);
    clone.notify(&topic("t"), "still there").await.expect("sent");
    assert_eq!(payload(&mut subscription).await, "still there");

    drop(clone);

    assert_eq!(timeout(PATIENCE, subscription.recv()).await.expect("in time"), None);
    let gone = timeout(PATIENCE, async {
        let left = "select count(*) from pg_stat_activity
                    where datname = current_database() and application_name in ('bus', 'notifier')";
        while sqlx::query_scalar::<_, i64>(left).fetch_one(&db.pool()).await.expect("a count") > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(gone.await.is_ok(), "connections are left");
}

#[tokio::test]
async fn an_attempt_to_listen_takes_as_long_as_the_address_lets_it() {
    // Where connections are made and nobody answers.
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
async fn a_namespace_that_would_be_cut_is_refused(db: TestDb) {
    for namespace in [String::new(), "x".repeat(54), "a\0b".to_owned()] {
        let options = BusOptions { namespace, ..BusOptions::default() };
        assert!(Bus::open(&config(&db), options).await.is_err());
    }
}

#[db_testkit::test]
async fn a_lazy_bus_listens_at_the_first_subscription_and_sends_without(db: TestDb) {
    let heard = bus(&db).await;
    let mut orders = heard.subscribe(&topic("orders"), 10);
    let lazy = Bus::lazy(&config(&db), &BusOptions::default()).expect("a bus");
    let namespace = BusOptions { namespace: String::new(), ..BusOptions::default() };
    assert!(matches!(Bus::lazy(&config(&db), &namespace), Err(db_notify::OpenError::Namespace)));
    let sessions = |sessions: &[db_testkit::Session], name: &str| {
        sessions.iter().filter(|session| session.application_name == name).count()
    };

    lazy.notify(&topic("orders"), "paid").await.expect("sent");
    assert_eq!(payload(&mut orders).await, "paid");
    let now = db.sessions().await.expect("sessions");
    assert_eq!((sessions(&now, "bus"), sessions(&now, "notifier")), (1, 2), "the other one has two: {now:?}");
    assert!(!lazy.state().connected);

    let mut late = [lazy.subscribe(&topic("orders"), 10), lazy.subscribe(&topic("orders"), 10)];
    for subscription in &mut late {
        let delivery = next(subscription).await;
        assert!(matches!(&delivery, Delivery::Gap(gap) if gap.reason == GapReason::Started), "{delivery:?}");
        assert!(lazy.state().connected);
        heard.notify(&topic("orders"), "sent").await.expect("sent");
        assert_eq!(payload(subscription).await, "sent");
    }
    let now = db.sessions().await.expect("sessions");
    assert_eq!(sessions(&now, "bus"), 2, "one of each: {now:?}");
    assert!(lazy.close(PATIENCE).await && heard.close(PATIENCE).await);
}

#[db_testkit::test]
async fn the_gap_of_a_lazy_bus_comes_when_it_listens_and_never_before(db: TestDb) {
    let proxy = db_testkit::Proxy::start(&db).expect("a proxy");
    let config = Config::from_url(&proxy.url()).expect("the proxy's address");
    let lazy = Bus::lazy(&config, &BusOptions::default()).expect("a bus");
    assert_eq!(proxy.accepted(), 0);
    proxy.freeze();

    let mut early = lazy.subscribe(&topic("t"), 10);
    db_testkit::until("it dials", async || proxy.accepted() > 0).await;
    // Sent past it, while it does not listen: that is what the gap is about.
    bus(&db).await.notify(&topic("t"), "missed").await.expect("sent");
    assert_eq!(futures_util::FutureExt::now_or_never(early.recv()), None);
    assert!(!lazy.state().connected);

    proxy.thaw();
    let delivery = next(&mut early).await;
    assert!(matches!(&delivery, Delivery::Gap(gap) if gap.reason == GapReason::Started), "{delivery:?}");
    bus(&db).await.notify(&topic("t"), "heard").await.expect("sent");
    assert_eq!(payload(&mut early).await, "heard");
}

#[db_testkit::test]
async fn a_lazy_bus_goes_on_trying_and_can_be_closed_before_it_listens(db: TestDb) {
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
