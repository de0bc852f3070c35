//! Trouble of a bus, and how state and log show it; and notifications of transactions, triggers and other programs.

use std::time::Duration;

use db_core::{Config, Pool, PoolOptions};
use db_notify::{
    Bus, BusOptions, Channel, Delivery, GapReason, Notification, NotificationSource, OpenError, Subscription,
    Topic, Trouble,
};
use db_testkit::{Proxy, Stop, TestDb, TestServer, until};
use harness::{Log, Process, told};
use sqlx::postgres::PgPoolOptions;
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::time::timeout;

use crate::processes::run;

const PATIENCE: Duration = Duration::from_secs(20);

/// The log of the buses of all tests of this process.
fn log() -> &'static Log {
    Log::of_this_process("db_notify=debug")
}

/// Options with frequent heartbeats. The namespace is the test's own, so that the channel tells its log lines apart.
fn options(db: &TestDb) -> BusOptions {
    let heartbeat = Duration::from_millis(50);
    // On a busy machine, an answer may take longer.
    let answer = Duration::from_secs(10);
    BusOptions::default().namespace(db.name().to_owned()).heartbeat(heartbeat).answer(answer)
}

fn config(db: &TestDb) -> Config {
    Config::from_url(&db.url()).expect("the test database's address")
}

async fn open(db: &TestDb) -> Bus {
    Bus::open(&config(db), options(db)).await.expect("a bus")
}

fn topic(name: &str) -> Topic {
    Topic::new(name).expect("a topic")
}

fn channel(name: &str) -> Channel {
    Channel::new(name).expect("a channel")
}

fn pool(config: &Config) -> Pool {
    Pool::new(config, PoolOptions::api().name("test").max(3))
}

async fn next(subscription: &mut Subscription) -> Delivery {
    timeout(PATIENCE, subscription.recv()).await.expect("a delivery in time").expect("an open bus")
}

async fn notification(subscription: &mut Subscription) -> Notification {
    match next(subscription).await {
        Delivery::Notification(notification) => notification,
        Delivery::Gap(gap) => panic!("a gap: {gap}"),
    }
}

async fn payload(subscription: &mut Subscription) -> String {
    notification(subscription).await.payload().to_owned()
}

async fn gap(subscription: &mut Subscription) -> GapReason {
    match next(subscription).await {
        Delivery::Gap(gap) => gap.reason,
        Delivery::Notification(other) => panic!("{other:?}"),
    }
}

async fn execute(db: &TestDb, sql: &'static str) {
    sqlx::raw_sql(sql).execute(&db.pool()).await.expect("done");
}

/// Waits for `count` heartbeats that begin from now on.
async fn heartbeats(bus: &Bus, count: usize) {
    let mut last = bus.state().last_heartbeat;
    // The first heartbeat may have begun before.
    for _ in 0..=count {
        until("another heartbeat", async || bus.state().last_heartbeat != last).await;
        last = bus.state().last_heartbeat;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_logged_once_and_used_once_it_is_promoted() {
    let log = log();
    let server = TestServer::throwaway().await.expect("a server");
    let db = server.empty().await.expect("a database");
    let own = format!("channel=db_notify.{}", db.name());
    let bus = open(&db).await;
    let mut subscription = bus.subscribe(&topic("t"), 10);
    let data = db.server().expect("a server of ours").data_dir().to_owned();

    std::fs::write(data.join("standby.signal"), "").expect("a file that makes it a standby");
    server.restart(Stop::Fast).await.expect("restarted");

    let error = Bus::open(&config(&db), options(&db)).await.expect_err("it cannot LISTEN");
    assert!(matches!(error, OpenError::Standby { .. }) && !error.is_final(), "{error:?}");
    until("it is known", async || bus.state().trouble == Some(Trouble::Standby)).await;
    assert!(!bus.state().is_connected());
    let sent = tokio::spawn({
        let bus = bus.clone();
        async move { bus.notify_with(&topic("t"), "meanwhile").await }
    });
    let tried = async |what: &'static str| {
        let before = log.count(&[&own, "DEBUG", what]);
        until(what, async || log.count(&[&own, "DEBUG", what]) >= before + 2).await;
    };
    tokio::join!(tried("cannot listen yet"), tried("cannot notify yet"));
    assert_eq!(log.count(&[&own, "WARN", "cannot listen yet", "the server is a standby"]), 1);
    assert_eq!(log.count(&[&own, "WARN", "cannot notify yet", "the server is a standby"]), 1);

    execute(&db, "select pg_promote()").await;

    assert_eq!(gap(&mut subscription).await, GapReason::Reconnected);
    sent.await.expect("no panic").expect("sent after all");
    bus.notify_with(&topic("t"), "after").await.expect("sent");
    // The gap covers notifications from before LISTEN was in force.
    while payload(&mut subscription).await != "after" {}
    assert_eq!(bus.state().trouble, None);
    assert_eq!(log.count(&[&own, "INFO", "listens again"]), 1);
    assert_eq!(log.count(&[&own, "INFO", "notifications are sent again"]), 1);
}

#[db_testkit::test]
async fn a_half_full_queue_is_logged_once_and_so_is_its_end(db: TestDb) {
    let log = log();
    let own = format!("channel=db_notify.{}", db.name());
    // A fake, since the server's queue holds gigabytes.
    execute(
        &db,
        "create schema fake;
         create table fake.queue (usage float8);
         insert into fake.queue values (0.25);
         create function fake.pg_notification_queue_usage() returns float8 language sql as 'select usage from fake.queue';
         do $$ begin execute format('alter database %I set search_path = fake, pg_catalog, public', current_database()); end $$;",
    )
    .await;
    let bus = open(&db).await;
    until("it is asked", async || bus.state().queue_usage == Some(0.25)).await;
    assert_eq!(bus.state().trouble, None);

    for round in 1..=2 {
        execute(&db, "update fake.queue set usage = 0.5").await;
        until("it is seen", async || bus.state().trouble == Some(Trouble::QueueFull)).await;
        assert_eq!(bus.state().queue_usage, Some(0.5));
        heartbeats(&bus, 3).await;
        assert_eq!(log.count(&[&own, "WARN", "may soon refuse notifications"]), round);

        execute(&db, "update fake.queue set usage = 0.49").await;
        until("it is over", async || bus.state().trouble.is_none()).await;
        heartbeats(&bus, 3).await;
        assert_eq!(log.count(&[&own, "INFO", "has room again"]), round);
    }
    assert!(bus.state().is_connected() && bus.state().gaps == 0, "nothing was lost: {:?}", bus.state());
}

#[db_testkit::test]
async fn a_full_queue_delays_notifications_and_loses_none(db: TestDb) {
    let log = log();
    let own = format!("channel=db_notify.{}", db.name());
    execute(
        &db,
        "create schema fake;
         create table fake.queue (is_full bool);
         insert into fake.queue values (false);
         create function fake.pg_notify(channel text, payload text) returns void language plpgsql as $$
         begin
             if (select is_full from fake.queue) then
                 raise exception 'too many notifications in the NOTIFY queue' using errcode = '54000';
             end if;
             perform pg_catalog.pg_notify(channel, payload);
         end $$;
         do $$ begin execute format('alter database %I set search_path = fake, pg_catalog, public', current_database()); end $$;",
    )
    .await;
    let bus = open(&db).await;
    let mut subscription = bus.subscribe(&topic("t"), 10);
    bus.notify_with(&topic("t"), "before").await.expect("sent");
    assert_eq!(payload(&mut subscription).await, "before");

    execute(&db, "update fake.queue set is_full = true").await;
    let sent = tokio::spawn({
        let bus = bus.clone();
        async move { bus.notify_with(&topic("t"), "while it was full").await }
    });
    until("it is seen", async || bus.state().trouble == Some(Trouble::QueueFull)).await;
    until("it goes on trying", async || log.count(&[&own, "DEBUG", "cannot notify yet"]) >= 3).await;
    assert_eq!(log.count(&[&own, "WARN", "cannot notify yet"]), 1);
    assert!(!sent.is_finished());
    bus.notify_soon_with(&topic("t"), "after it").expect("accepted");

    execute(&db, "update fake.queue set is_full = false").await;

    timeout(PATIENCE, sent).await.expect("in time").expect("no panic").expect("sent");
    assert_eq!(payload(&mut subscription).await, "while it was full");
    assert_eq!(payload(&mut subscription).await, "after it");
    assert_eq!(bus.state().trouble, None);
    assert_eq!(log.count(&[&own, "INFO", "notifications are sent again"]), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listening_session_in_a_long_transaction_fills_the_queue() {
    // A server of its own, since the queue also holds the notifications of other databases.
    let server = TestServer::throwaway().await.expect("a server");
    let db = server.empty().await.expect("a database");
    let bus = open(&db).await;
    until("it is asked", async || bus.state().queue_usage == Some(0.0)).await;
    let mut session = db.options().connect().await.expect("a session");
    session.execute("listen anything").await.expect("it listens");
    session.execute("begin; select 1").await.expect("and reads nothing");

    execute(&db, "select pg_notify('anything', repeat('x', 7000) || n) from generate_series(1, 100) n").await;

    until("it is not empty", async || bus.state().queue_usage.is_some_and(|usage| usage > 0.0)).await;
    assert_eq!(bus.state().trouble, None, "far from full");
    session.close_hard().await.expect("closed");
    execute(&db, "select pg_notify('anything', 'now the server looks')").await;
    until("it is empty again", async || bus.state().queue_usage == Some(0.0)).await;
}

/// A second database, in LATIN1.
async fn latin(db: &TestDb) -> Config {
    execute(db, "create database latin template template0 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'")
        .await;
    Config::from_url(&db.url().replace(db.name(), "latin")).expect("an address")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_the_encoding_cannot_hold_costs_other_channels_nothing() {
    let server = TestServer::throwaway().await.expect("a server");
    let db = server.empty().await.expect("a database");
    let latin = latin(&db).await;
    let bus = Bus::open(&latin, options(&db)).await.expect("a bus");
    let mut topics = bus.subscribe(&topic("t"), 10);
    let mut fine = bus.listen(&channel("fine"), 10);
    assert_eq!(gap(&mut fine).await, GapReason::Started);

    let mut odd = bus.listen(&channel("🦀"), 10);
    let mut late = bus.listen(&channel("late"), 10);

    // No program can notify this channel, so the bus skips it.
    assert_eq!(gap(&mut odd).await, GapReason::Started);
    assert_eq!(gap(&mut late).await, GapReason::Started);
    let pool = PgPoolOptions::new().max_connections(1).connect_with(latin.as_sqlx()).await.expect("a pool");
    let heard = async |subscription: &mut Subscription, name: &str| {
        let sql = "select pg_notify($1, 'heard')";
        sqlx::query(sql).bind(name).execute(&pool).await.expect("notified");
        assert_eq!(payload(subscription).await, "heard");
    };
    heard(&mut fine, "fine").await;
    heard(&mut late, "late").await;
    drop(odd);
    bus.notify_with(&topic("t"), "1").await.expect("sent");
    assert_eq!(payload(&mut topics).await, "1");
    until("it is listened to no longer", async || bus.state().channels == 2).await;
    heard(&mut fine, "fine").await;
    assert_eq!((bus.state().trouble, bus.state().gaps), (None, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_the_encoding_cannot_hold_is_one_gap_and_delays_nothing() {
    let server = TestServer::throwaway().await.expect("a server");
    let db = server.empty().await.expect("a database");
    execute(&db, "create database latin template template0 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'")
        .await;
    let latin = Config::from_url(&db.url().replace(db.name(), "latin")).expect("an address");
    let (bus, other) = (Bus::open(&latin, options(&db)).await, Bus::open(&latin, options(&db)).await);
    let (bus, other) = (bus.expect("a bus"), other.expect("a bus"));
    let mut subscriptions =
        [bus.subscribe(&topic("t"), 10), bus.subscribe(&topic("u"), 10), other.subscribe(&topic("v"), 10)];

    let sent = timeout(PATIENCE, bus.notify_with(&topic("t"), "🦀")).await;
    sent.expect("it is not tried for ever").expect("as far as it can be sent");

    for subscription in &mut subscriptions {
        assert_eq!(gap(subscription).await, GapReason::Overflow);
    }
    other.notify_with(&topic("t"), "ü").await.expect("sent");
    assert_eq!(payload(&mut subscriptions[0]).await, "ü");
    bus.notify_with(&topic("t"), "after").await.expect("sent");
    assert_eq!(payload(&mut subscriptions[0]).await, "after");
    assert_eq!((bus.state().trouble, bus.state().gaps, other.state().gaps), (None, 1, 1));
}

#[db_testkit::test]
async fn notifications_of_a_trigger_arrive_for_any_name_of_a_channel(db: TestDb) {
    let bus = open(&db).await;
    execute(
        &db,
        "create table job (channel text, payload text);
         create function tell() returns trigger language plpgsql as $$
         begin
             perform pg_notify(new.channel, new.payload);
             return null;
         end $$;
         create trigger tell after insert on job for each row execute function tell();",
    )
    .await;
    let longest = "x".repeat(Channel::MAX_BYTES);
    let names = ["jobs", "Jobs", "Straße \"x\"'; $$ 🦀\n", "a\"\"b", &longest];
    let mut subscriptions = names.map(|name| bus.listen(&channel(name), 10));
    for subscription in &mut subscriptions {
        assert_eq!(gap(subscription).await, GapReason::Started);
    }

    sqlx::query("insert into job select name, 'to ' || name from unnest($1::text[]) name")
        .bind(names)
        .execute(&db.pool())
        .await
        .expect("inserted");

    for (subscription, name) in subscriptions.iter_mut().zip(names) {
        let heard = notification(subscription).await;
        assert_eq!(heard.source(), &NotificationSource::Channel(channel(name)));
        assert_eq!(heard.payload(), format!("to {name}"));
    }
    assert_eq!(bus.state().gaps, 0, "no name has cost the session");
}

#[db_testkit::test]
async fn notify_in_arrives_with_the_commit_and_in_order(db: TestDb) {
    let (bus, other) = (open(&db).await, open(&db).await);
    let mut subscription = other.subscribe(&topic("t"), 10);
    let pool = pool(&config(&db));

    let mut undone = pool.handle().begin().await.expect("begun");
    bus.notify_in(&mut undone, &topic("t"), "undone").await.expect("part of it");
    undone.rollback().await.expect("rolled back");
    let mut dropped = pool.handle().begin().await.expect("begun");
    bus.notify_in(&mut dropped, &topic("t"), "dropped").await.expect("part of it");
    drop(dropped);
    let mut tx = pool.handle().begin().await.expect("begun");
    for payload in ["1", "2", "3"] {
        bus.notify_in(&mut tx, &topic("t"), payload).await.expect("part of it");
    }
    bus.notify_with(&topic("t"), "before the commit").await.expect("sent");

    assert_eq!(payload(&mut subscription).await, "before the commit");
    tx.commit().await.expect("committed");
    bus.notify_with(&topic("t"), "after it").await.expect("sent");
    for expected in ["1", "2", "3", "after it"] {
        assert_eq!(payload(&mut subscription).await, expected);
    }
}

/// Runs in a child process, which commits and ends at once.
#[test]
fn a_process_that_ends_at_its_commit() {
    let Some((address, mut orders)) = told() else { return };
    run(async {
        let config = Config::from_url(&address).expect("an address");
        let namespace = orders.recv().await.expect("a namespace");
        let options = BusOptions::default().namespace(namespace);
        let bus = Bus::lazy(&config, &options).expect("a bus");
        let pool = pool(&config);
        let mut tx = pool.handle().begin().await.expect("begun");
        bus.notify_in(&mut tx, &topic("t"), "its last words").await.expect("part of it");
        tx.commit().await.expect("committed");
        #[expect(clippy::disallowed_methods, reason = "the process must end without any drop")]
        std::process::exit(0);
    });
}

#[db_testkit::test]
async fn notify_in_survives_its_process(db: TestDb) {
    let bus = open(&db).await;
    let mut subscription = bus.subscribe(&topic("t"), 10);
    let mut process = Process::start("trouble::a_process_that_ends_at_its_commit", &db.url());

    process.tell(db.name());

    assert_eq!(payload(&mut subscription).await, "its last words");
}

#[db_testkit::test]
async fn a_flood_of_an_unknown_form_is_logged_once_for_each_kind(db: TestDb) {
    let log = log();
    let bus = open(&db).await;
    let own = bus_channel(&db);
    let said = |kind| log.count(&[&format!("channel={own}"), "WARN", "an unknown form", kind]);
    let mut subscription = bus.subscribe(&topic("t"), 10);
    let flood = |form: &'static str| {
        let own = own.clone();
        let pool = db.pool();
        async move {
            sqlx::query("select pg_notify($1, $2 || n) from generate_series(1, 1000) as n")
                .bind(own.as_str())
                .bind(form)
                .execute(&pool)
                .await
                .expect("notified");
        }
    };

    for _ in 0..5 {
        flood("something else ").await;
        flood("2").await;
        assert_eq!(gap(&mut subscription).await, GapReason::Unreadable);
    }
    bus.notify_with(&topic("t"), "readable").await.expect("sent");
    while let Delivery::Gap(_) = next(&mut subscription).await {}
    assert_eq!((said("not sent by a bus"), said("of another version")), (1, 1));
}

fn bus_channel(db: &TestDb) -> Channel {
    channel(&format!("db_notify.{}", db.name()))
}

#[db_testkit::test]
async fn a_server_that_ends_idle_sessions_keeps_those_of_the_bus(db: TestDb) {
    let name = db.name().to_owned();
    let timeout_for_all = format!("alter database \"{name}\" set idle_session_timeout = '300ms'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(timeout_for_all)).execute(&db.pool()).await.expect("set");
    let heartbeat = Duration::from_hours(1);
    let bus = Bus::open(&config(&db), options(&db).heartbeat(heartbeat)).await.expect("a bus");
    let mut subscription = bus.subscribe(&topic("t"), 10);
    bus.notify_with(&topic("t"), "before").await.expect("sent");
    assert_eq!(payload(&mut subscription).await, "before");
    let since = bus.state().connected_since;

    // A session that began after both sessions of the bus is ended.
    let options: sqlx::postgres::PgConnectOptions = db.url().parse().expect("an address");
    let other = options.application_name("other").connect().await.expect("a session");
    db.until_sessions("one that is idle is ended", |all| {
        all.iter().all(|session| session.application_name != "other")
    })
    .await;
    drop(other);

    bus.notify_with(&topic("t"), "after").await.expect("sent");
    assert_eq!(payload(&mut subscription).await, "after");
    assert_eq!(bus.state().connected_since, since);
}

#[db_testkit::test]
async fn a_statement_on_a_silent_session_is_sent_again_and_may_arrive_twice(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let config = Config::from_url(&proxy.url()).expect("the proxy's address");
    let answer = Duration::from_secs(1);
    let bus = Bus::open(&config, options(&db).answer(answer).heartbeat(Duration::from_hours(1)));
    let (bus, other) = (bus.await.expect("a bus"), open(&db).await);
    let mut subscription = other.subscribe(&topic("t"), 10);
    bus.notify_with(&topic("t"), "0").await.expect("sent");
    assert_eq!(payload(&mut subscription).await, "0");

    proxy.freeze_open();
    bus.notify_soon_with(&topic("t"), "1").expect("accepted");
    until("it is under way", async || bus.state().pending == 0).await;
    for text in ["2", "3"] {
        bus.notify_soon_with(&topic("t"), text).expect("accepted");
    }
    // As if the first session never answered.
    for text in ["1", "2", "3"] {
        assert_eq!(payload(&mut subscription).await, text);
    }
    proxy.thaw();

    assert_eq!(payload(&mut subscription).await, "1", "the server was only slow");
}
