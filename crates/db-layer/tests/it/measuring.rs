//! What an exporter shows of a database.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;

use db_layer::encryption::{Columns, Context, Key, KeyType, Keyring, Strategy};
use db_layer::metrics::{Kind, MeasureOptions, Metric, all, histograms};
use db_layer::{
    BusOptions, Config, Db, Error, NewEvent, Options, PoolOptions, Topic, Tx, TxOptions, TxRetry,
};
use db_testkit::{Proxy, TestDb, until};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::{PATIENCE, config, options};

/// The exporter of this process. Tests know their own series by the names of their pools.
fn exporter() -> &'static PrometheusHandle {
    static EXPORTER: OnceLock<PrometheusHandle> = OnceLock::new();
    EXPORTER.get_or_init(|| {
        let buckets = |builder: PrometheusBuilder, (name, bounds): (&str, &[f64])| {
            builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds).expect("bounds")
        };
        let builder = histograms().fold(PrometheusBuilder::new().with_recommended_naming(true), buckets);
        builder.install_recorder().expect("no other recorder")
    })
}

/// What the exporter shows of a metric with these labels.
fn shown(name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let text = exporter().render();
    let mut lines = text.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|(key, value)| line.contains(&format!("{key}=\"{value}\"")))
    });
    let line = lines.next()?;
    assert_eq!(lines.next(), None, "one series is asked for");
    line.rsplit_once(' ')?.1.parse().ok()
}

const POOL: &str = "db_client_connection_pool_name";

/// A pool that no other test has, in the place of the API pool.
fn pool(name: &str) -> PoolOptions {
    PoolOptions::api().name(name).max(2).acquire_timeout(PATIENCE)
}

async fn measured(db: &TestDb, api: PoolOptions) -> Db {
    exporter();
    let layer = db_layer::open(Options::new(config(db)).api(api)).await.expect("an open database");
    layer.measure();
    layer
}

#[db_testkit::test]
async fn each_metric_of_the_table_is_exported_and_no_other(db: TestDb) {
    exporter();
    sqlx::raw_sql("create table customers (id bigint primary key, iban bytea)")
        .execute(&db.pool())
        .await
        .expect("a table");
    let columns = Columns::default();
    drop(columns.declare::<String>("customers", "iban").key("id", KeyType::BigInt).text());
    let keys = Keyring::new(&Key::generate().expect("a key"));
    let bus = BusOptions::default().heartbeat(Duration::from_millis(50)).namespace("all");
    let opened = options(&db).await.keys(keys).columns(columns).bus(bus).api(pool("all"));
    #[cfg(feature = "redis")]
    let redis = db_testkit::Redis::start().await.expect("a Redis");
    #[cfg(feature = "redis")]
    let opened = opened.redis(db_layer::redis::RedisConfig::from_url(&redis.url()).expect("an address"));
    let layer = db_layer::open(opened).await.expect("an open database");
    layer.measure();
    // Each value is known now.
    let log = layer.events().create().await.expect("a log");
    let mut stream = layer.events().stream(log, 0);
    let reading = tokio::spawn(async move { stream.next_batch().await.expect("more") });
    until("it follows", async || layer.events().state().followers == 1).await;
    layer.events().append(log, &[NewEvent::new("n", "")]).await.expect("appended");
    reading.await.expect("no panic");
    sqlx::query("select 1 / 0").execute(layer.api()).await.expect_err("division by zero");
    sqlx::query("select 1").execute(layer.api()).await.expect("an answer");
    until("all is known", async || {
        let health = layer.health();
        let left = health.sealing.and_then(|sealing| sealing.rekeying).and_then(|state| state.left);
        let redis = health.redis.is_none_or(|redis| redis.figures.is_some());
        health.migrations.is_some() && health.bus.queue_usage.is_some() && left.is_some() && redis
    })
    .await;
    layer.gauges();

    let text = exporter().render();
    assert!(text.contains("namespace=\"all\""), "{text}");
    let types: BTreeSet<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .filter(|(name, _)| name.starts_with("db"))
        .collect();
    let is_there = |metric: &&Metric| cfg!(feature = "redis") || !metric.name.contains("redis");
    let expected: Vec<(String, &str)> = all().iter().filter(is_there).map(exported).collect();
    let expected: BTreeSet<(&str, &str)> =
        expected.iter().map(|(name, kind)| (name.as_str(), *kind)).collect();
    assert_eq!(types, expected);
    for metric in all().iter().filter(is_there) {
        let help = format!("# HELP {}", metric.name.replace('.', "_"));
        assert!(text.contains(&help) && text.contains(metric.what), "{help}");
    }
    let all = [("namespace", "all")];
    assert_eq!(shown("db_layer_migration_version", &all), Some(20_261_129_000_002.0));
    assert_eq!(shown("db_layer_migration_pending", &all), Some(0.0));
    assert_eq!(shown("db_layer_key_left_to_rekey", &all), Some(0.0));
}

#[db_testkit::test]
async fn the_name_of_a_pool_breaks_no_line(db: TestDb) {
    let layer = measured(&db, pool("a \"quoted\\ name\nof two lines")).await;
    sqlx::query("select 1").execute(layer.api()).await.expect("an answer");
    layer.gauges();

    let text = exporter().render();
    let name = r#"db_client_connection_pool_name="a \"quoted\\ name\nof two lines""#;
    assert!(text.contains(&format!("db_client_connection_max{{{name}}} 2\n")), "{text}");
    assert!(!text.lines().any(|line| line.starts_with("of two lines")));
}

#[db_testkit::test]
async fn a_service_that_shuts_down_is_not_ready_and_is_meant_to_be(db: TestDb) {
    exporter();
    let bus = BusOptions::default().namespace("closing");
    let options = Options::new(config(&db)).bus(bus);
    let layer = db_layer::open(options).await.expect("an open database");
    layer.measure();
    let numbers =
        || ["db_layer_ready", "db_layer_closing"].map(|name| shown(name, &[("namespace", "closing")]));

    assert_eq!(numbers(), [Some(1.0), Some(0.0)]);
    layer.closing().cancel();
    layer.gauges();
    assert_eq!(numbers(), [Some(0.0), Some(1.0)]);
}

/// The name and the kind that the exporter gives a metric.
fn exported(metric: &Metric) -> (String, &'static str) {
    let name = metric.name.replace('.', "_");
    let unit = match metric.unit {
        "s" => "_seconds",
        "By" => "_bytes",
        _ => "",
    };
    match metric.kind {
        Kind::Counter => (format!("{name}{unit}_total"), "counter"),
        Kind::Gauge => (format!("{name}{unit}"), "gauge"),
        _ => (format!("{name}{unit}"), "histogram"),
    }
}

#[test]
fn the_rules_of_alerts_are_over_metrics_that_are_exported() {
    let names: BTreeSet<String> = all()
        .iter()
        .map(exported)
        .flat_map(|(name, kind)| match kind {
            "histogram" => ["_sum", "_count", "_bucket"].map(|part| format!("{name}{part}")).to_vec(),
            _ => vec![name],
        })
        .collect();
    let labels = ["db_client_connection_state"];
    for rule in db_layer::alerts::all() {
        let words = rule.expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let series: Vec<&str> =
            words.filter(|word| word.starts_with("db_") && !labels.contains(word)).collect();
        assert!(!series.is_empty(), "{}", rule.name);
        for name in series {
            assert!(names.contains(name), "{name} of {}", rule.name);
        }
    }
}

#[test]
fn the_page_of_metrics_lists_each_with_its_meaning() {
    let page = include_str!("../../../../docs/metrics.md");
    let listed: BTreeSet<&str> = page.lines().filter(|line| line.starts_with("| `db")).collect();
    let rows: Vec<String> = all()
        .iter()
        .map(|metric| {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                _ => "histogram",
            };
            let unit = metric.unit.to_owned();
            let unit = if unit.starts_with('{') { format!("`{unit}`") } else { unit };
            format!("| `{}` | {kind} | {unit} | {} |", metric.name, metric.what)
        })
        .collect();
    assert_eq!(listed, rows.iter().map(String::as_str).collect());
}

#[db_testkit::test]
async fn statements_have_the_labels_of_opentelemetry_and_errors_theirs(db: TestDb) {
    exporter();
    // It has a host and a port, where a server of tests has a socket.
    let proxy = Proxy::start(&db).expect("a proxy");
    let config = Config::from_url(&proxy.url()).expect("the proxy's address");
    let opened = Options::new(config.clone()).api(pool("labels"));
    let layer = db_layer::open(opened).await.expect("an open database");
    layer.measure();
    for _ in 0..3 {
        sqlx::query("select generate_series(1, 7)")
            .fetch_all(layer.api().named("series"))
            .await
            .expect("rows");
    }
    sqlx::query("select 1 / 0").execute(layer.api()).await.expect_err("division by zero");
    // The rollback is a statement, too, and in the background none is.
    let limit = TxOptions::default().timeout(Duration::from_secs(1));
    let mut tx = layer.api().begin_with(limit).await.expect("a transaction");
    sqlx::query("select pg_sleep(600)").execute(&mut *tx).await.expect_err("a limit");
    drop(tx);
    layer.gauges();

    let of = |name: &str, more: &[(&str, &str)]| {
        let port = config.as_sqlx().get_port().to_string();
        let mut labels =
            vec![(POOL, "labels"), ("db_system_name", "postgresql"), ("db_namespace", config.database())];
        labels.extend([("server_port", &*port), ("server_address", "127.0.0.1")]);
        labels.extend(more);
        shown(name, &labels)
    };
    let good = "db_client_operation_duration_seconds_count";
    let text = exporter().render();
    let line = |with: &str| text.lines().find(|line| line.contains("\"labels\"") && line.contains(with));
    assert_eq!(line("db_query_summary"), None, "names are a label by choice");
    let line = text
        .lines()
        .find(|line| line.starts_with(good) && line.contains("\"labels\"") && !line.contains("error_type"));
    assert!(line.is_some_and(|line| line.ends_with(" 4")), "with BEGIN: {line:?}");
    assert_eq!(of("db_client_response_returned_rows_sum", &[]), Some(21.0));
    assert_eq!(of(good, &[("error_type", "22012"), ("db_response_status_code", "22012")]), Some(1.0));
    assert_eq!(of(good, &[("error_type", "timed_out")]), Some(1.0));
    let late =
        text.lines().find(|line| line.contains("error_type=\"timed_out\"") && line.contains("\"labels\""));
    assert!(late.is_some_and(|line| !line.contains("status_code")), "the server did not say it: {late:?}");
    assert!(!text.contains("pg_sleep") && !text.contains("generate_series"), "no text of a statement");
}

#[db_testkit::test]
async fn the_usual_port_is_no_label_and_a_socket_is_the_address(db: TestDb) {
    let layer = measured(&db, pool("socket")).await;
    sqlx::query("select 1").execute(layer.api()).await.expect("an answer");

    layer.gauges();
    let address = config(&db).as_sqlx();
    let folder = address.get_socket().map(|folder| folder.display().to_string());
    let host = folder.unwrap_or_else(|| address.get_host().to_owned());
    let labels = [(POOL, "socket"), ("server_address", &*host)];
    assert_eq!(shown("db_client_response_returned_rows_count", &labels), Some(1.0));
    let text = exporter().render();
    let mut ours = text.lines().filter(|line| line.contains("\"socket\"") && line.contains("server_address"));
    let has_port = ours.any(|line| line.contains("server_port"));
    assert_eq!(has_port, address.get_port() != 5432);
}

#[db_testkit::test]
async fn names_of_work_are_a_label_by_choice(db: TestDb) {
    exporter();
    let layer = db_layer::open(Options::new(config(&db)).api(pool("named"))).await.expect("an open database");
    layer.measure_with(MeasureOptions::default().by_name(true));
    for name in ["orders/list", "orders/list", "orders/one"] {
        sqlx::query("select 1").execute(layer.api().named(name)).await.expect("an answer");
    }
    sqlx::query("select 1").execute(layer.api()).await.expect("an answer");
    sqlx::query("select 1 / 0").execute(layer.api().named("orders/one")).await.expect_err("division by zero");

    layer.gauges();
    let of = |name: &str| {
        let name = [(POOL, "named"), ("db_query_summary", name)];
        shown("db_client_response_returned_rows_count", &name)
    };
    assert_eq!((of("orders/list"), of("orders/one")), (Some(2.0), Some(1.0)));
    let failed = [(POOL, "named"), ("db_query_summary", "orders/one"), ("error_type", "22012")];
    assert_eq!(shown("db_client_operation_duration_seconds_count", &failed), Some(1.0));
}

#[db_testkit::test]
async fn the_pool_is_shown_as_it_is_and_times_as_they_were(db: TestDb) {
    let layer = measured(&db, pool("times").min_idle(1).max_idle(Some(1))).await;
    let of = |name: &str| {
        layer.gauges();
        shown(name, &[(POOL, "times")])
    };
    let state = |state: &str| {
        layer.gauges();
        let ours = shown("db_pool_connections", &[("pool", "times"), ("state", state)]);
        let theirs = [(POOL, "times"), ("db_client_connection_state", state)];
        (ours, shown("db_client_connection_count", &theirs))
    };
    let (first, second) = (layer.api().acquire().await, layer.api().acquire().await);
    let waits = tokio::spawn(layer.api().acquire());
    until("it waits", async || layer.health().api.waiting == 1).await;

    assert_eq!(state("total"), (Some(2.0), None));
    assert_eq!(state("idle"), (Some(0.0), Some(0.0)));
    assert_eq!(state("waiting").0, Some(1.0));
    assert_eq!(state("used").1, Some(2.0));
    assert_eq!(of("db_client_connection_pending_requests"), Some(1.0));
    assert_eq!(of("db_layer_connection_overflow"), Some(1.0));
    assert_eq!(
        [
            of("db_client_connection_max"),
            of("db_client_connection_idle_max"),
            of("db_client_connection_idle_min")
        ],
        [Some(2.0), Some(1.0), Some(1.0)]
    );
    drop(first);
    drop(waits.await.expect("no panic").expect("a connection"));
    drop(second);
    until("one is closed, as one too many", async || {
        shown("db_layer_connection_closed_total", &[(POOL, "times"), ("reason", "limit")]) == Some(1.0) || {
            layer.gauges();
            false
        }
    })
    .await;

    for (name, count) in [("wait_time", 3.0), ("use_time", 3.0)] {
        let name = format!("db_client_connection_{name}_seconds_count");
        assert_eq!(of(&name), Some(count), "{name}");
    }
    assert_eq!(of("db_layer_connection_queue_time_seconds_count"), Some(3.0));
    let queued = of("db_layer_connection_queue_time_seconds_sum").expect("a sum");
    let waited = of("db_client_connection_wait_time_seconds_sum").expect("a sum");
    assert!(queued > 0.0 && waited >= queued, "{waited} {queued}");
    assert!(of("db_client_connection_create_time_seconds_sum") > Some(0.0));
    assert!(of("db_client_connection_use_time_seconds_sum") > Some(0.0));
}

#[db_testkit::test]
async fn counters_are_there_with_0_and_begin_with_what_was_before(db: TestDb) {
    exporter();
    let api = pool("before").max(1).max_waiting(Some(0));
    let layer = db_layer::open(Options::new(config(&db)).api(api)).await.expect("an open database");
    let held = layer.api().acquire().await.expect("a connection");
    layer.api().acquire().await.expect_err("turned away");
    drop(held);
    let fail = || {
        async |tx: &mut Tx| {
            let raise = "do $$ begin raise exception using errcode = '40001'; end $$";
            sqlx::raw_sql(raise).execute(&mut *tx).await?;
            Ok::<_, Error>(())
        }
    };
    let policy = TxRetry::default().retries(2).conflict_pause(Duration::ZERO);
    layer.api().tx_retry(TxOptions::default(), policy, fail).await.expect_err("it fails each time");

    layer.measure();
    layer.measure();

    let of = |name: &str, more: (&str, &str)| shown(name, &[(POOL, "before"), more]);
    let plain = (POOL, "before");
    assert_eq!(of("db_layer_connection_shed_total", plain), Some(1.0));
    assert_eq!(of("db_layer_tx_retries_total", ("error_type", "40001")), Some(2.0));
    assert_eq!(of("db_layer_tx_retries_total", ("error_type", "40P01")), Some(0.0), "known before the first");
    for name in ["leaked", "cancelled", "second_waits"] {
        assert_eq!(of(&format!("db_layer_connection_{name}_total"), plain), Some(0.0), "{name}");
    }
    for reason in ["lifetime", "idle", "uses", "limit", "evicted", "lost", "repair", "shut"] {
        assert_eq!(of("db_layer_connection_closed_total", ("reason", reason)), Some(0.0), "{reason}");
    }
    assert_eq!(of("db_client_connection_timeouts_total", plain), Some(0.0));
    sqlx::query("select 1").execute(layer.api()).await.expect("an answer");
    layer.gauges();
    assert_eq!(of("db_client_response_returned_rows_count", plain), Some(1.0), "measured once");
}

#[db_testkit::test]
async fn the_bus_the_logs_and_the_keys_are_shown(db: TestDb) {
    exporter();
    let keys = Keyring::new(&Key::generate().expect("a key"));
    let opened = options(&db).await.keys(keys).namespace("shown").api(pool("shown"));
    let layer = db_layer::open(opened).await.expect("an open database");
    layer.measure();
    let topic = Topic::new("t").expect("a topic");
    let subscription = layer.bus().subscribe(&topic, 1);
    layer.bus().notify(&topic).await.expect("sent");
    let sealing = layer.keys().expect("keys");
    let place = Context::new("t", "c", 1);
    let sealed = sealing.seal_json(&7, &place).expect("sealed");
    sealing.unseal_json::<i32>(&sealed, &Context::new("t", "c", 2)).expect_err("of another row");
    layer.gauges();

    let of = |name: &str| shown(name, &[("namespace", "shown")]);
    assert_eq!(of("db_layer_bus_connected"), Some(1.0));
    assert_eq!(of("db_layer_bus_subscribers"), Some(2.0));
    assert_eq!(of("db_layer_bus_sent_total"), Some(1.0));
    assert_eq!(of("db_layer_events_followers"), Some(0.0));
    let gaps = [("namespace", "shown"), ("reason", "reconnected")];
    assert_eq!(shown("db_layer_bus_gaps_total", &gaps), Some(0.0));
    let key = |name: &str, more| shown(&format!("db_layer_key_{name}"), &[("namespace", "shown"), more]);
    let plain = ("namespace", "shown");
    assert_eq!([key("sealed_total", plain), key("unsealed_total", plain)], [Some(1.0), Some(0.0)]);
    assert_eq!(key("failed_total", ("reason", "not_authentic")), Some(1.0));
    assert_eq!(key("failed_total", ("reason", "keys_away")), Some(0.0));
    // What is not known is not 0.
    assert_eq!(of("db_layer_events_lag_seconds"), None);
    drop(subscription);
}

#[db_testkit::test]
async fn a_task_sets_the_gauges_and_ends_with_the_database(db: TestDb) {
    exporter();
    let layer = db_layer::open(Options::new(config(&db)).api(pool("task"))).await.expect("an open database");
    layer.measure_with(MeasureOptions::default().every(Duration::ZERO));
    let held = layer.api().acquire().await.expect("a connection");
    let used = [(POOL, "task"), ("db_client_connection_state", "used")];
    until("the task shows it", async || shown("db_client_connection_count", &used) == Some(1.0)).await;

    drop(held);
    drop(layer);

    db.until_sessions("all are gone", <[db_testkit::Session]>::is_empty).await;
}

#[db_testkit::test]
async fn counters_go_on_when_the_database_is_opened_again(db: TestDb) {
    exporter();
    for times in 1..=2 {
        let opened = Options::new(config(&db)).api(pool("again").max(1).max_waiting(Some(0)));
        let layer = db_layer::open(opened).await.expect("an open database");
        layer.measure();
        let held = layer.api().acquire().await.expect("a connection");
        layer.api().acquire().await.expect_err("turned away");
        drop(held);
        layer.gauges();
        layer.gauges();
        assert_eq!(shown("db_layer_connection_shed_total", &[(POOL, "again")]), Some(f64::from(times)));
    }
}

#[db_testkit::test]
async fn a_call_outside_of_a_runtime_measures_nothing_and_a_later_one_does(db: TestDb) {
    exporter();
    let layer =
        db_layer::open(Options::new(config(&db)).api(pool("outside"))).await.expect("an open database");
    let outside = layer.clone();
    std::thread::spawn(move || outside.measure()).join().expect_err("there is no runtime");

    layer.measure();

    sqlx::query("select 1").execute(layer.api()).await.expect("an answer");
    layer.gauges();
    let rows = || shown("db_client_response_returned_rows_count", &[(POOL, "outside")]);
    assert_eq!(rows(), Some(1.0), "once");
    // The observer hands on its last values when the pool ends.
    sqlx::query("select 1").execute(layer.api()).await.expect("an answer");
    drop(layer);
    db.until_sessions("all are gone", <[db_testkit::Session]>::is_empty).await;
    until("the last values are there", async || rows() >= Some(2.0)).await;
    assert_eq!(rows(), Some(2.0), "once");
}

#[db_testkit::test]
async fn a_pool_may_have_any_name(db: TestDb) {
    let name = "a \"name\"\nwith \\ breaks";
    let layer = measured(&db, pool(name)).await;
    sqlx::query("select 1").execute(layer.api().named("work \"of\"\nmany")).await.expect("an answer");
    layer.gauges();

    let text = exporter().render();
    let ours: Vec<_> = text.lines().filter(|line| line.contains(r#"a \"name\"\nwith \\ breaks"#)).collect();
    assert!(ours.iter().any(|line| line.starts_with("db_client_connection_max{")), "{text}");
    assert!(text.lines().all(|line| !line.starts_with("with ")), "a line break would begin a line");
    assert_eq!(layer.api().pool().name(), name);
}
