//! A connection to Redis beside the database.

use std::time::Duration;

use db_layer::redis::client::{AsyncCommands, RedisResult, cmd};
use db_layer::redis::{RedisConfig, WithoutRedis};
use db_layer::{DatabaseHealth, Db, Options};
use db_testkit::{Proxy, Redis, TestDb, until};
use harness::{Log, Parrot};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::{PATIENCE, config};

/// Longer than any answer takes, and not waited for.
const LONG: Duration = Duration::from_secs(10);

fn redis(url: &str) -> RedisConfig {
    RedisConfig::from_url(url).expect("an address")
}

async fn open(db: &TestDb, redis: RedisConfig) -> Db {
    db_layer::open(Options::new(config(db)).redis(redis)).await.expect("an open database")
}

/// With patience for a machine that is busy.
fn patient(url: &str) -> RedisConfig {
    redis(url).connect(PATIENCE).answer(PATIENCE)
}

/// Says it over a connection of its own.
async fn tell(server: &Redis, commands: &str) {
    let mut socket = UnixStream::connect(server.socket()).await.expect("a connection");
    socket.write_all(format!("{commands}\r\nQUIT\r\n").as_bytes()).await.expect("sent");
    let mut said = String::new();
    timeout(PATIENCE, socket.read_to_string(&mut said)).await.expect("in time").expect("read");
    assert!(said.lines().all(|line| line == "+OK"), "{said}");
}

/// A network in front of it. A proxy leads to sockets that have the name of PostgreSQL's.
fn proxy(server: &Redis) -> Proxy {
    let folder = server.socket().parent().expect("a folder").to_owned();
    std::os::unix::fs::symlink(server.socket(), folder.join(".s.PGSQL.6379")).expect("a link");
    Proxy::to_address(&format!("postgres://redis@localhost/redis?host={}&port=6379", folder.display()))
        .expect("a proxy")
}

fn through(proxy: &Proxy) -> String {
    let options = proxy.options();
    format!("redis://{}:{}", options.get_host(), options.get_port())
}

/// What a client of its own is told in the section.
async fn info(server: &Redis, section: &str) -> String {
    let client = db_layer::redis::client::Client::open(server.url()).expect("an address");
    let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
    cmd("INFO").arg(section).query_async(&mut connection).await.expect("an answer")
}

async fn connections(server: &Redis) -> u64 {
    let info = info(server, "clients").await;
    let count = info.lines().find_map(|line| line.strip_prefix("connected_clients:")).expect("a count");
    count.parse::<u64>().expect("a number") - 1
}

fn names(db: &Db) -> Vec<&'static str> {
    db.alerts().iter().map(|alert| alert.rule.name).collect()
}

/// One round trip.
async fn set(layer: &Db, limit: Duration) -> Result<(), WithoutRedis> {
    layer.redis().expect("a connection").within(limit, async |mut redis| redis.set("word", 1).await).await
}

#[db_testkit::test]
async fn one_connection_serves_all_and_says_how_redis_is(db: TestDb) {
    let log = Log::of_this_process("trace");
    let server = Redis::start().await.expect("a Redis");
    let mut monitor = db_layer::MonitorOptions::default();
    monitor.log_every = Duration::from_secs(2);
    let options =
        Options::new(config(&db)).redis(patient(&server.url())).monitor(monitor).namespace("figures");
    let layer = db_layer::open(options).await.expect("an open database");

    let count = async || layer.redis().expect("a connection").clone().incr::<_, _, i64>("visits", 1).await;
    let counts: Vec<RedisResult<i64>> = futures_util::future::join_all((0..20).map(|_| count())).await;
    let mut counts: Vec<i64> = counts.into_iter().map(|it| it.expect("an answer")).collect();
    counts.sort_unstable();

    assert_eq!(counts, (1..=20).collect::<Vec<i64>>());
    assert_eq!(connections(&server).await, 1);
    let health = || layer.health().redis.expect("a connection");
    until("it is known", async || health().figures.is_some_and(|it| it.commands > Some(20))).await;
    assert!(health().is_connected() && health().without == 0, "{:?}", health());
    let figures = health().figures.expect("figures");
    assert!(figures.connections >= Some(1) && figures.memory > Some(100_000), "{figures:?}");
    assert!(figures.commands_per_second.is_some(), "{figures:?}");
    let line = ["redis figures", "namespace=\"figures\"", "connected=true", "connections=1", "memory="];
    until("its figures are logged", async || log.count(&line) >= 1).await;
    assert!(names(&layer).is_empty(), "{:?}", layer.alerts());
}

#[db_testkit::test]
async fn a_database_is_opened_and_ready_without_its_redis_and_an_alert_tells_until_it_comes_back(db: TestDb) {
    let server = Redis::start().await.expect("a Redis");
    server.kill().expect("killed");

    let layer = open(&db, redis(&server.url())).await;

    assert!(set(&layer, LONG).await.is_err());
    until("an alert", async || names(&layer) == ["RedisAway"]).await;
    let health = layer.health();
    assert!(health.is_ready());
    let away = health.redis.expect("a connection");
    assert!(matches!(away.server, DatabaseHealth::Fails { .. }) && !away.is_connected(), "{away:?}");
    assert!(away.without == 1 && away.figures.is_none(), "{away:?}");

    server.restart().await.expect("a Redis");
    until("it is used again", async || set(&layer, LONG).await.is_ok()).await;
    until("it is well", async || layer.health().redis.is_some_and(|it| it.is_connected())).await;
    until("the alert has ended", async || !names(&layer).contains(&"RedisAway")).await;
}

#[db_testkit::test]
async fn a_redis_that_does_not_answer_is_left_alone_and_tried_again_by_one(db: TestDb) {
    let server = Redis::start().await.expect("a Redis");
    // A time that never comes by itself in this test.
    let slow = redis(&server.url()).connect(PATIENCE).answer(Duration::from_secs(3));
    let layer = open(&db, slow.rest(LONG * 10)).await;
    set(&layer, LONG).await.expect("an answer");
    server.freeze().expect("frozen");

    let without = || layer.health().redis.expect("a connection").without;
    let late = set(&layer, Duration::from_millis(50)).await.expect_err("no answer");
    assert!(matches!(late, WithoutRedis::Late(_)), "{late}");
    // The answer to a look may still have been on its way, by which it seems to be there.
    until("it is left alone", async || {
        matches!(set(&layer, Duration::from_millis(50)).await, Err(WithoutRedis::Resting))
    })
    .await;
    let before = without();
    for _ in 0..100 {
        let resting = set(&layer, LONG).await.expect_err("it is not asked");
        assert!(matches!(resting, WithoutRedis::Resting), "{resting}");
    }
    assert_eq!(without() - before, 100);
    until("an alert", async || names(&layer).contains(&"RedisBypassed")).await;
    until("another", async || names(&layer).contains(&"RedisAway")).await;

    server.thaw().expect("thawed");
    until("it answers", async || layer.health().redis.is_some_and(|it| it.is_connected())).await;
    let after =
        db_layer::open(Options::new(config(&db)).redis(redis(&server.url()).rest(Duration::ZERO))).await;
    let after = after.expect("an open database");
    server.freeze().expect("frozen");
    assert!(set(&after, Duration::from_millis(50)).await.is_err());
    server.thaw().expect("thawed");
    until("it is tried again", async || set(&after, LONG).await.is_ok()).await;
}

#[db_testkit::test]
async fn an_error_that_redis_answers_with_keeps_nobody_away(db: TestDb) {
    let server = Redis::start().await.expect("a Redis");
    let layer = open(&db, patient(&server.url()).rest(LONG * 10)).await;
    set(&layer, LONG).await.expect("an answer");
    let redis = layer.redis().expect("a connection");

    let wrong = redis.within(LONG, async |mut redis| redis.lpush::<_, _, i64>("word", 1).await).await;

    let wrong = wrong.expect_err("a list is no number");
    let reason = std::error::Error::source(&wrong).expect("a reason").to_string();
    assert!(matches!(&wrong, WithoutRedis::Failed(_)) && reason.contains("WRONGTYPE"), "{reason}");
    set(&layer, LONG).await.expect("it is asked all the same");
    let text = async |mut redis: db_layer::redis::Redis| {
        redis.set::<_, _, ()>("text", "x").await?;
        redis.get::<_, i64>("text").await
    };
    let text = redis.within(LONG, text).await.expect_err("a text is no number");
    assert!(matches!(&text, WithoutRedis::Failed(_)), "{text}");
    set(&layer, LONG).await.expect("it is asked all the same");
}

/// What the driver asks first, in one packet, is answered.
const SET_UP: &[u8] = b"+OK\r\n+OK\r\n";

#[db_testkit::test]
async fn an_answer_that_is_nonsense_or_is_cut_off_is_no_answer(db: TestDb) {
    let nonsense: [&[&[u8]]; 6] = [
        // Before the first command, and after.
        &[b"HTTP/1.1 400 Bad Request\r\n\r\n"],
        &[b""],
        &[SET_UP, b"$100\r\nhalf"],
        &[SET_UP, b"$100\r\nhalf", b""],
        &[SET_UP, b":1\x00\x01\x02"],
        &[SET_UP, b""],
    ];
    for answers in nonsense {
        let parrot = Parrot::saying(answers).await.expect("a server");
        // Left alone for longer than this test takes.
        let silly = redis(&format!("redis://{}", parrot.address())).rest(LONG * 10);
        let layer = open(&db, silly).await;

        let nothing = set(&layer, LONG).await.expect_err("no answer");

        assert!(matches!(nothing, WithoutRedis::Failed(_)), "{nothing} to {answers:?}");
        let resting = set(&layer, LONG).await.expect_err("no answer");
        assert!(matches!(resting, WithoutRedis::Resting), "{resting}");
        until("it is away", async || {
            matches!(layer.health().redis.expect("one").server, DatabaseHealth::Fails { .. })
        })
        .await;
        assert!(layer.health().is_ready());
        assert!(layer.shutdown(PATIENCE).await.is_clean());
    }
}

#[db_testkit::test]
async fn a_server_without_tls_is_refused_and_nothing_panics(db: TestDb) {
    let parrot = Parrot::saying(&[b"-ERR unknown command\r\n"]).await.expect("a server");
    let layer = open(&db, redis(&format!("rediss://{}", parrot.address()))).await;

    until("it is away", async || {
        matches!(layer.health().redis.expect("one").server, DatabaseHealth::Fails { .. })
    })
    .await;
    assert!(layer.health().is_ready());
}

#[db_testkit::test]
async fn a_login_that_is_refused_is_an_alert_and_is_tried_again(db: TestDb) {
    let server = Redis::start().await.expect("a Redis");
    tell(&server, "CONFIG SET requirepass first").await;
    let without = open(&db, redis(&server.url())).await;
    let wrong = open(&db, redis(&format!("{}?pass=second", server.url()))).await;
    for layer in [&without, &wrong] {
        assert!(set(layer, LONG).await.is_err());
        until("an alert", async || names(layer).contains(&"RedisAway")).await;
    }

    tell(&server, "AUTH first\r\nCONFIG SET requirepass second").await;
    until("the right password is taken", async || set(&wrong, LONG).await.is_ok()).await;
    tell(&server, "AUTH second\r\nCONFIG SET requirepass \"\"").await;
    until("none is needed", async || set(&without, LONG).await.is_ok()).await;
}

#[db_testkit::test]
async fn a_link_that_is_silent_is_replaced(db: TestDb) {
    let server = Redis::start().await.expect("a Redis");
    let proxy = proxy(&server);
    let layer = open(&db, redis(&through(&proxy))).await;
    until("it is used", async || set(&layer, LONG).await.is_ok()).await;

    // Nothing ends, and nothing comes: only a new connection helps.
    proxy.half_open();

    until("it is away", async || !layer.health().redis.expect("one").is_connected()).await;
    until("it is back", async || layer.health().redis.expect("one").is_connected()).await;
    until("it is used again", async || set(&layer, LONG).await.is_ok()).await;
}

#[db_testkit::test]
async fn a_shutdown_waits_for_the_last_command_says_goodbye_and_nothing_connects_again(db: TestDb) {
    let server = Redis::start().await.expect("a Redis");
    let layer = open(&db, patient(&server.url())).await;
    let mut redis = layer.redis().expect("a connection").clone();
    redis.set::<_, _, ()>("word", "kept").await.expect("an answer");
    // It is answered when somebody else pushes.
    let last = tokio::spawn(async move {
        let popped: RedisResult<(String, String)> = redis.blpop("last", 0.0).await;
        (popped, redis)
    });
    until("it waits", async || info(&server, "clients").await.contains("blocked_clients:1")).await;
    let closing = tokio::spawn({
        let layer = layer.clone();
        async move { layer.shutdown(PATIENCE).await }
    });
    until("it is closed", async || layer.health().redis.is_some_and(|it| it.is_closed)).await;
    assert!(!closing.is_finished());

    let client = db_layer::redis::client::Client::open(server.url()).expect("an address");
    let mut other = client.get_multiplexed_async_connection().await.expect("a connection");
    other.lpush::<_, _, ()>("last", "one").await.expect("pushed");

    let (popped, mut redis) = timeout(PATIENCE, last).await.expect("in time").expect("no panic");
    assert_eq!(popped.expect("an answer").1, "one");
    let report = closing.await.expect("no panic");
    assert!(report.redis_closed && report.is_clean(), "{report:?}");
    assert!(info(&server, "commandstats").await.contains("cmdstat_quit:calls=1"));
    let refused = redis.get::<_, String>("word").await.expect_err("closed");
    assert!(refused.to_string().contains("the service shuts down"), "{refused}");
    assert!(set(&layer, LONG).await.is_err());
    drop(other);
    until("nobody is connected", async || connections(&server).await == 0).await;
    assert!(layer.shutdown(PATIENCE).await.redis_closed, "once more");
}

/// Nothing is sent yet that `QUIT` could come after.
#[db_testkit::test]
async fn a_shutdown_waits_for_a_command_that_still_waits_for_its_connection(db: TestDb) {
    let server = Redis::start().await.expect("a Redis");
    server.freeze().expect("frozen");
    let layer = open(&db, patient(&server.url())).await;
    let mut redis = layer.redis().expect("a connection").clone();
    let mut last = redis.set::<_, _, ()>("word", "kept");
    assert!(futures_util::poll!(&mut last).is_pending());
    let mut closing = std::pin::pin!(layer.shutdown(PATIENCE));
    until("only it is waited for", async || {
        assert!(futures_util::poll!(&mut closing).is_pending());
        layer.health().redis.is_some_and(|it| it.is_closed)
    })
    .await;

    server.thaw().expect("thawed");

    let (last, report) = tokio::join!(last, closing);
    last.expect("an answer");
    assert!(report.redis_closed && report.is_clean(), "{report:?}");
    assert!(info(&server, "commandstats").await.contains("cmdstat_quit:calls=1"));
}

#[db_testkit::test]
async fn a_shutdown_does_not_wait_for_a_frozen_redis_for_longer_than_it_may(db: TestDb) {
    let log = Log::of_this_process("trace");
    let server = Redis::start().await.expect("a Redis");
    let layer = open(&db, patient(&server.url()).answer(PATIENCE * 10)).await;
    let mut redis = layer.redis().expect("a connection").clone();
    redis.set::<_, _, ()>("word", "kept").await.expect("an answer");
    server.freeze().expect("frozen");
    let mut never = redis.get::<_, String>("word");
    assert!(futures_util::poll!(&mut never).is_pending());

    let report = timeout(PATIENCE, layer.shutdown(Duration::from_secs(2))).await.expect("in time");

    assert!(!report.redis_closed && !report.is_clean() && report.bus_closed, "{report:?}");
    assert_eq!(log.count(&["WARN", "redis not closed in time"]), 1);
    drop(never);
}

#[db_testkit::test]
async fn a_lazy_database_connects_to_redis_when_somebody_uses_it(db: TestDb) {
    let server = Redis::start().await.expect("a Redis");
    let options = Options::new(config(&db)).redis(patient(&server.url())).lazy();
    let layer = db_layer::open(options).await.expect("an open database");
    sqlx::query("select 1").execute(layer.api()).await.expect("an answer");
    // Both are looked at equally often.
    let is_known = || matches!(layer.health().database, DatabaseHealth::Answers { .. });
    until("the database is looked at", async || is_known()).await;
    assert_eq!(connections(&server).await, 0);
    assert!(matches!(layer.health().redis.expect("one").server, DatabaseHealth::NotAsked));

    set(&layer, LONG).await.expect("an answer");

    until("it is looked at", async || layer.health().redis.is_some_and(|it| it.is_connected())).await;
    assert_eq!(connections(&server).await, 1);
}
