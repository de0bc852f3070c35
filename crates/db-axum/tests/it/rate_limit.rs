//! Limits of requests for each client, in one process and in several that share a Redis.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName};
use axum::routing::{get, post};
use axum::{Json, Router};
use db_axum::{Limit, RateLimit};
use db_layer::redis::RedisConfig;
use db_layer::redis::client::{AsyncCommands, Client as RedisClient};
use db_layer::{Config, Db, Options};
use db_testkit::{Proxy, Redis, TestDb, until};
use harness::{Log, Parrot, Process};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{Endless, PATIENCE, Served, client};

/// The header that says whose request it is.
const USER: HeaderName = HeaderName::from_static("x-user");

/// Serves routes that know the addresses of their peers.
async fn serve(routes: Router) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let routes = routes.into_make_service_with_connect_info::<SocketAddr>();
    let server = tokio::spawn(async move { axum::serve(listener, routes).await.expect("serves") });
    Served::new(address, AbortOnDropHandle::new(server))
}

fn route(limit: RateLimit) -> Router {
    Router::new().route("/", get(async || "here").post(async |Json(body): Json<String>| body)).layer(limit)
}

fn limit(limits: impl IntoIterator<Item = Limit>) -> RateLimit {
    RateLimit::new("api", limits).expect("limits")
}

/// A process of a service that runs twice, with patience for a machine that is busy.
async fn process(database: &str, redis: &str) -> Db {
    let redis = RedisConfig::from_url(redis).expect("an address").connect(PATIENCE).answer(PATIENCE);
    let config = Config::from_url(database).expect("an address");
    let options = Options::new(config).redis(redis.rest(Duration::from_millis(100))).instances(2);
    db_layer::open(options.namespace("limited")).await.expect("an open database")
}

/// Two that count in the same Redis.
async fn two(db: &TestDb, redis: &Redis) -> [Db; 2] {
    [process(&db.url(), &redis.url()).await, process(&db.url(), &redis.url()).await]
}

/// The numbers of a header such as `"api";r=2;t=2400`, of which the second may be smaller, since time goes on.
fn state(headers: &HeaderMap) -> (u32, u32) {
    let [state] = header(headers, "ratelimit")[..] else { panic!("{headers:?}") };
    let (left, full) =
        state.strip_prefix(r#""api";r="#).and_then(|rest| rest.split_once(";t=")).expect("two numbers");
    (left.parse().expect("a number"), full.parse().expect("a number"))
}

/// Whether a number of seconds is this one, or a little less.
fn is_about(seconds: u32, expected: u32) -> bool {
    (expected.saturating_sub(20)..=expected).contains(&seconds)
}

fn retry_after(headers: &HeaderMap) -> u32 {
    header(headers, "retry-after")[0].parse().expect("a number")
}

/// How many requests of a user pass. None is answered by anything but 200 and 429.
async fn passes(served: &[&Served], user: &str, requests: usize) -> usize {
    let addresses: Vec<&str> = served.iter().map(|served| served.address.as_str()).collect();
    passes_at(&addresses, user, requests).await
}

async fn passes_at<A: AsRef<str>>(addresses: &[A], user: &str, requests: usize) -> usize {
    let client = client();
    let statuses = (0..requests).map(async |number| {
        let request = client.get(addresses[number % addresses.len()].as_ref()).header(USER, user);
        request.send().await.expect("an answer").status().as_u16()
    });
    let statuses = futures_util::future::join_all(statuses).await;
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    statuses.iter().filter(|status| **status == 200).count()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    headers.get_all(name).iter().map(|value| value.to_str().expect("text")).collect()
}

#[tokio::test]
async fn a_client_that_sends_too_many_is_told_when_to_come_back() {
    let served = serve(route(limit([Limit::per_hour(3)]))).await;
    for left in [2, 1, 0] {
        let answer = client().get(&served.address).send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        assert_eq!(header(answer.headers(), "ratelimit-policy"), [r#""api";q=3;w=3600"#]);
        let (now_left, full) = state(answer.headers());
        assert!(now_left == left && is_about(full, 1200 * (3 - left)), "{left}: {:?}", answer.headers());
    }

    let answer = client().get(&served.address).send().await.expect("an answer");

    assert_eq!(answer.status(), 429);
    assert!(is_about(retry_after(answer.headers()), 1200), "{:?}", answer.headers());
    let (left, full) = state(answer.headers());
    assert!(left == 0 && is_about(full, 3600), "{:?}", answer.headers());
    let body: Value = answer.json().await.expect("JSON");
    assert_eq!(body["type"], "urn:db-axum:too-many-requests");
    assert_eq!((&body["status"], &body["title"]), (&Value::from(429), &Value::from("Too Many Requests")));
}

#[tokio::test]
async fn a_request_is_refused_before_its_body_which_may_never_end() {
    let served = serve(route(limit([Limit::per_hour(1)]))).await;
    assert_eq!(client().get(&served.address).send().await.expect("an answer").status(), 200);

    let answer = Endless::begin(&served).await.answer("too-many-requests").await;

    assert!(answer.starts_with("http/1.1 429") && answer.contains("retry-after: 3"), "{answer}");
}

#[tokio::test]
async fn limits_of_routes_and_of_all_count_apart_and_are_told_together() {
    let logins = RateLimit::new("logins", [Limit::per_minute(1)]).expect("limits").behind(1);
    let all = RateLimit::new("all", [Limit::per_second(1000), Limit::per_hour(4)]).expect("limits").behind(1);
    let routes =
        Router::new().route("/", get(async || "here")).route("/login", post(async || "in").layer(logins));
    let served = serve(routes.layer(all)).await;
    let login = async |address: &str| {
        let request = client().post(format!("{}/login", served.address)).header("x-forwarded-for", address);
        request.send().await.expect("an answer")
    };

    let first = login("192.0.2.1").await;
    assert_eq!(first.status(), 200);
    let policies = header(first.headers(), "ratelimit-policy");
    assert_eq!(policies, [r#""logins";q=1;w=60"#, r#""all-1";q=1000;w=1, "all-2";q=4;w=3600"#]);
    let second = login("192.0.2.1").await;
    assert_eq!(second.status(), 429);
    assert!(is_about(retry_after(second.headers()), 60), "{:?}", second.headers());
    assert_eq!(login("192.0.2.2").await.status(), 200, "another client");
    let statuses = async || {
        let request = client().get(&served.address).header("x-forwarded-for", "192.0.2.1");
        request.send().await.expect("an answer").status().as_u16()
    };
    assert_eq!(
        [statuses().await, statuses().await, statuses().await],
        [200, 200, 429],
        "the refused login counts here"
    );
}

#[tokio::test]
async fn a_request_may_cost_more_or_nothing_and_a_client_may_have_no_limit() {
    let cost = |request: &Request| request.uri().query().and_then(|query| query.parse().ok()).unwrap_or(1);
    let by = |request: &Request| {
        let user = request.headers().get(USER)?.to_str().ok()?;
        (user != "admin").then(|| user.to_owned())
    };
    let served = serve(route(limit([Limit::per_hour(10)]).cost(cost).by(by))).await;
    let get = async |user: &str, cost: u64| {
        let request = client().get(format!("{}/?{cost}", served.address)).header(USER, user);
        let answer = request.send().await.expect("an answer");
        let left = answer.headers().contains_key("ratelimit").then(|| state(answer.headers()).0);
        (answer.status().as_u16(), left)
    };

    assert_eq!(get("a", 7).await, (200, Some(3)));
    assert_eq!(get("a", 0).await, (200, None));
    assert_eq!(get("a", 4).await, (429, Some(3)));
    assert_eq!(get("a", 3).await, (200, Some(0)));
    assert_eq!(get("b", 4_000_000_000).await, (200, Some(0)));
    for _ in 0..20 {
        assert_eq!(get("admin", 10).await, (200, None));
    }
}

#[tokio::test]
async fn a_client_may_have_to_wait_for_a_year() {
    let year = Duration::from_hours(365 * 24);
    let served = serve(route(limit([Limit::per(1, year)]))).await;
    assert_eq!(client().get(&served.address).send().await.expect("an answer").status(), 200);

    let answer = client().get(&served.address).send().await.expect("an answer");

    assert_eq!(answer.status(), 429);
    assert!(is_about(retry_after(answer.headers()), 31_536_000), "{:?}", answer.headers());
    assert_eq!(header(answer.headers(), "ratelimit-policy"), [r#""api";q=1;w=31536000"#]);
}

#[tokio::test]
async fn proxies_and_a_header_may_be_told_in_any_order() {
    let limits = || limit([Limit::per_hour(1)]);
    for limit in [limits().behind(1).by_header(USER), limits().by_header(USER).behind(1)] {
        let served = serve(route(limit)).await;
        let get = async |user: Option<&str>, address: &str| {
            let mut request = client().get(&served.address).header("x-forwarded-for", address);
            if let Some(user) = user {
                request = request.header(USER, user);
            }
            request.send().await.expect("an answer").status().as_u16()
        };
        assert_eq!([get(Some("a"), "192.0.2.1").await, get(Some("a"), "192.0.2.2").await], [200, 429]);
        assert_eq!([get(None, "192.0.2.1").await, get(None, "192.0.2.1").await], [200, 429]);
        assert_eq!(get(None, "192.0.2.2").await, 200);
    }
}

#[tokio::test]
async fn routes_that_do_not_know_their_peers_say_so_in_the_log() {
    let log = Log::of_this_process("info");
    let served = crate::support::serve(route(limit([Limit::per_hour(10)]))).await;

    let answer = client().get(&served.address).send().await.expect("an answer");

    assert_eq!(answer.status(), 500);
    assert_eq!(log.count(&["ERROR", "into_make_service_with_connect_info"]), 1);
}

/// In another process: serves routes that are limited together with others, says where, and how many did without Redis.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_serves_when_told_to() {
    let Some((addresses, mut orders)) = harness::told() else { return };
    let (database, redis) = addresses.split_once(' ').expect("two addresses");
    let layer = process(database, redis).await;
    let served = serve(route(shared(&layer, PATIENCE))).await;
    harness::answer(&served.address);
    while orders.recv().await.is_some() {
        harness::answer(&format!("{} {}", layer.redis().expect("a connection").health().without, clock()));
    }
}

/// Seconds since 1970, by this process's clock.
#[expect(clippy::disallowed_methods, reason = "the clocks of two processes are compared")]
fn clock() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
}

fn shared(layer: &Db, answer: Duration) -> RateLimit {
    limit([Limit::per_hour(100)]).by_header(USER).answer_within(answer).shared_by(layer)
}

/// The library that sets a process's clock apart, where it is installed: `.ci/run` does that.
fn clock_of_another_hour() -> Vec<(&'static str, String)> {
    let found = ["x86_64", "aarch64"]
        .map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1"));
    let Some(library) = found.into_iter().find(|path| std::path::Path::new(path).exists()) else {
        eprintln!("both processes have the same clock: faketime is not installed");
        return Vec::new();
    };
    vec![("LD_PRELOAD", library), ("FAKETIME", "+1h".to_owned()), ("DONT_FAKE_MONOTONIC", "1".to_owned())]
}

#[db_testkit::test]
async fn two_processes_on_one_redis_let_the_limit_through_once_whatever_their_clocks_say(db: TestDb) {
    let redis = Redis::start().await.expect("a Redis");
    let addresses = format!("{} {}", db.url(), redis.url());
    let test = "rate_limit::a_process_that_serves_when_told_to";
    let fast = clock_of_another_hour();
    let mut processes = [Process::start(test, &addresses), Process::start_with(test, &addresses, &fast)];
    let [one, other] = &mut processes;
    let [a, b] = [one.hear().await, other.hear().await];

    let passed = [passes_at(&[&a, &b], "one", 300).await, passes_at(&[&a, &b, &b], "other", 300).await];

    assert!(passed.iter().all(|passed| (99..=101).contains(passed)), "{passed:?}");
    let answer = client().get(&a).header(USER, "one").send().await.expect("an answer");
    assert_eq!(header(answer.headers(), "ratelimit-policy"), [r#""api";q=100;w=3600"#]);
    assert!((1..=36).contains(&retry_after(answer.headers())), "{:?}", answer.headers());
    let mut clocks = Vec::new();
    for process in &mut processes {
        let said = process.ask("how is it?").await;
        let (without, clock) = said.split_once(' ').expect("two numbers");
        assert_eq!(without, "0");
        clocks.push(clock.parse::<i64>().expect("a number"));
    }
    assert_eq!(clocks[1] - clocks[0] > 3000, !fast.is_empty(), "{clocks:?}");
    let url = redis.url();
    let mut connection = RedisClient::open(url)
        .expect("an address")
        .get_multiplexed_async_connection()
        .await
        .expect("a connection");
    let keys: Vec<String> = connection.keys("*").await.expect("keys");
    let prefix = format!("{}:limited:rate:api:", db.name());
    assert!(keys.len() == 2 && keys.iter().all(|key| key.starts_with(&prefix)), "{keys:?}");
    assert!(!keys.iter().any(|key| key.contains("other")), "a client may be a secret: {keys:?}");
    let ttl: i64 = connection.pttl(&keys[0]).await.expect("a time");
    assert!((1..=3_600_000).contains(&ttl), "{ttl}");
}

/// Each trouble by itself, in the middle of a period in which clients send ten times their limit.
#[db_testkit::test]
async fn whatever_happens_to_redis_no_client_gets_an_error_or_more_than_twice_its_limit(db: TestDb) {
    enum Trouble {
        Killed,
        Frozen,
        Emptied,
        Restarted,
    }
    for trouble in [Trouble::Killed, Trouble::Frozen, Trouble::Emptied, Trouble::Restarted] {
        let redis = Redis::start().await.expect("a Redis");
        let layers = two(&db, &redis).await;
        // A machine that is busy may be late for 50 ms, too; only a frozen one has to be.
        let answer = if matches!(trouble, Trouble::Frozen) { Duration::from_millis(50) } else { PATIENCE };
        let [a, b] =
            [serve(route(shared(&layers[0], answer))).await, serve(route(shared(&layers[1], answer))).await];
        // One process has let all through, half of them, or none.
        let mut before = [passes(&[&a], "all", 300).await, 0, 0];
        before[1] = passes(&[&a], "half", 50).await;

        match trouble {
            Trouble::Killed => redis.kill().expect("killed"),
            Trouble::Frozen => redis.freeze().expect("frozen"),
            Trouble::Restarted => redis.restart().await.expect("a Redis"),
            Trouble::Emptied => {
                let mut connection = layers[0].redis().expect("a connection").clone();
                connection.flushall::<()>().await.expect("emptied");
            }
        }
        let mut during = [0; 3];
        for (during, user) in during.iter_mut().zip(["all", "half", "none"]) {
            *during = passes(&[&a], user, 1).await + passes(&[&a, &b], user, 300).await;
        }
        match trouble {
            Trouble::Killed => redis.restart().await.expect("a Redis"),
            Trouble::Frozen => redis.thaw().expect("thawed"),
            Trouble::Emptied | Trouble::Restarted => {}
        }
        for layer in &layers {
            let ask = |mut redis: db_layer::redis::Redis| async move { redis.exists::<_, bool>("x").await };
            let redis = layer.redis().expect("a connection");
            until("Redis is used again", async || redis.within(PATIENCE, ask).await.is_ok()).await;
        }
        for (number, user) in ["all", "half", "none"].into_iter().enumerate() {
            let after = passes(&[&a, &b], user, 300).await;
            let whole = before[number] + during[number] + after;
            assert!((50..=200).contains(&whole), "{user}: {} {} {after}", before[number], during[number]);
        }
        if matches!(trouble, Trouble::Killed | Trouble::Frozen) {
            let without = |layer: &Db| layer.redis().expect("a connection").health().without;
            assert!(layers.iter().map(without).sum::<u64>() > 100, "they went on by themselves");
        }
    }
}

#[db_testkit::test]
async fn a_frozen_redis_costs_a_few_requests_its_time_and_not_each(db: TestDb) {
    let redis = Redis::start().await.expect("a Redis");
    let config = RedisConfig::from_url(&redis.url()).expect("an address").rest(PATIENCE * 10);
    let options = Options::new(Config::from_url(&db.url()).expect("an address")).redis(config);
    let layer = db_layer::open(options).await.expect("an open database");
    let shared = limit([Limit::per_hour(100)]).shared_by(&layer).answer_within(PATIENCE / 4);
    let served = serve(route(shared)).await;
    assert_eq!(passes(&[&served], "", 1).await, 1);
    let without = || layer.redis().expect("a connection").health().without;
    let before = without();
    redis.freeze().expect("frozen");

    let began = std::time::Instant::now();
    for _ in 0..50 {
        assert_eq!(passes(&[&served], "", 1).await, 1);
    }

    assert!(began.elapsed() < PATIENCE / 2, "one of 50 waits: {:?}", began.elapsed());
    assert_eq!(without() - before, 50);
}

#[db_testkit::test]
async fn a_redis_that_answers_something_else_is_as_good_as_none(db: TestDb) {
    let set_up = &b"+OK\r\n+OK\r\n"[..];
    for answer in [
        ":7\r\n",
        "*2\r\n:1\r\n:-5\r\n",
        "*3\r\n:1\r\n:1\r\n:1\r\n",
        "*2\r\n:2\r\n:1\r\n",
        "+OK\r\n",
        "\0\0",
        "*2\r\n:1\r\n",
        "",
    ] {
        let parrot = Parrot::saying(&[set_up, answer.as_bytes()]).await.expect("a server");
        let redis = RedisConfig::from_url(&format!("redis://{}", parrot.address())).expect("an address");
        let options =
            Options::new(Config::from_url(&db.url()).expect("an address")).redis(redis).instances(2);
        let layer = db_layer::open(options).await.expect("an open database");
        let served = serve(route(limit([Limit::per_hour(10)]).shared_by(&layer))).await;

        assert_eq!(passes(&[&served], "", 20).await, 5, "its share, with {answer:?}");
    }
}

/// A request that is on its way for longer than one before must not cost the client the difference.
#[db_testkit::test]
async fn a_client_loses_nothing_by_requests_that_are_late(db: TestDb) {
    let redis = Redis::start().await.expect("a Redis");
    let folder = redis.socket().parent().expect("a folder").to_owned();
    // A proxy leads to sockets that have the name of PostgreSQL's.
    std::os::unix::fs::symlink(redis.socket(), folder.join(".s.PGSQL.6379")).expect("a link");
    let way = format!("postgres://redis@localhost/redis?host={}&port=6379", folder.display());
    let proxy = Proxy::to_address(&way).expect("a proxy");
    let options = proxy.options();
    let layer = process(&db.url(), &format!("redis://{}:{}", options.get_host(), options.get_port())).await;
    let served =
        serve(route(limit([Limit::per_hour(2)]).by_header(USER).answer_within(PATIENCE).shared_by(&layer)))
            .await;
    assert_eq!(passes(&[&served], "a", 5).await, 2);
    let mut direct = RedisClient::open(redis.url())
        .expect("an address")
        .get_multiplexed_async_connection()
        .await
        .expect("a connection");
    let key = direct.keys::<_, Vec<String>>("*").await.expect("keys").remove(0);
    let before: String = direct.get(&key).await.expect("a time");

    proxy.latency(Duration::from_millis(200));
    assert_eq!(passes(&[&served], "a", 3).await, 0);

    assert_eq!(direct.get::<_, String>(&key).await.expect("a time"), before);
}

#[db_testkit::test]
async fn nobody_waits_for_longer_than_the_limit_whatever_redis_has_stored(db: TestDb) {
    let redis = Redis::start().await.expect("a Redis");
    let layer = process(&db.url(), &redis.url()).await;
    let served =
        serve(route(limit([Limit::per_minute(2)]).by_header(USER).shared_by(&layer).answer_within(PATIENCE)))
            .await;
    assert_eq!(passes(&[&served], "a", 1).await, 1);
    let mut connection = layer.redis().expect("a connection").clone();
    let key = connection.keys::<_, Vec<String>>("*").await.expect("keys").remove(0);

    // As after the clock was set back by years.
    connection.set::<_, _, ()>(&key, "9007199254740992").await.expect("stored");
    let answer = client().get(&served.address).header(USER, "a").send().await.expect("an answer");
    assert_eq!(answer.status(), 429);
    assert!(is_about(retry_after(answer.headers()), 30), "{:?}", answer.headers());

    for nonsense in ["", "x", "1e400", "-5", "nan inf", "0 0 0 0"] {
        connection.set::<_, _, ()>(&key, nonsense).await.expect("stored");
        let answer = client().get(&served.address).header(USER, "a").send().await.expect("an answer");
        assert!([200, 429].contains(&answer.status().as_u16()), "{nonsense}");
    }
    assert_eq!(layer.redis().expect("a connection").health().without, 0);
}

#[db_testkit::test]
async fn without_a_redis_each_process_counts_by_itself(db: TestDb) {
    let options = Options::new(Config::from_url(&db.url()).expect("an address")).instances(2);
    let layer = db_layer::open(options).await.expect("an open database");
    let served = serve(route(limit([Limit::per_hour(10)]).shared_by(&layer))).await;
    assert_eq!(passes(&[&served], "", 30).await, 10);
}

/// Clones count together, also when they are asked at once.
#[tokio::test]
async fn requests_at_once_never_pass_more_than_the_limit() {
    static HANDLED: AtomicU32 = AtomicU32::new(0);
    async fn count() {
        HANDLED.fetch_add(1, Ordering::Relaxed);
    }
    let limit = limit([Limit::per_hour(50), Limit::per_day(60)]);
    let routes =
        Router::new().route("/one", get(count).layer(limit.clone())).route("/two", get(count).layer(limit));
    let served = serve(routes).await;
    let client = client();

    let asked = (0..300).map(async |number| {
        let path = if number % 2 == 0 { "one" } else { "two" };
        client.get(format!("{}/{path}", served.address)).send().await.expect("an answer").status().as_u16()
    });
    let statuses = futures_util::future::join_all(asked).await;

    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 50);
    assert_eq!(HANDLED.load(Ordering::Relaxed), 50);
}

#[db_testkit::test]
async fn a_redis_that_was_emptied_learns_again_what_the_processes_remember(db: TestDb) {
    let redis = Redis::start().await.expect("a Redis");
    let layers = two(&db, &redis).await;
    let [a, b] =
        [serve(route(shared(&layers[0], PATIENCE))).await, serve(route(shared(&layers[1], PATIENCE))).await];
    assert_eq!([passes(&[&a], "all", 150).await, passes(&[&a], "half", 50).await], [100, 50]);
    let mut connection = layers[0].redis().expect("a connection").clone();

    connection.flushall::<()>().await.expect("emptied");
    let [all, half] = [passes(&[&a], "all", 1).await, passes(&[&a], "half", 1).await];

    assert_eq!([all, half], [0, 1]);
    assert_eq!(passes(&[&b], "all", 150).await, 0, "the other process hears of it");
    assert_eq!(passes(&[&b], "half", 150).await, 49);
}
