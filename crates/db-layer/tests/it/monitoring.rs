//! Alerts, counts of statements, slow queries, and figures in the log.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use db_embedded::Server;
use db_layer::alerts::{self, Rule};
use db_layer::db_notify::{Delivery, GapReason};
use db_layer::encryption::{Key, KeySource, KeySources};
use db_layer::{
    BusOptions, Channel, Db, KeyOptions, MonitorOptions, NoServerCount, Options, PoolOptions, SlowSource,
    StatementCount, StatementCounts, Topic,
};
use db_testkit::{TestDb, until};
use futures_util::future::try_join_all;
use harness::Log;
use secrecy::ExposeSecret;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::NamedTempFile;
use tokio::task::JoinSet;

use crate::keys::keys_on_record;
use crate::{PATIENCE, config};

/// A database whose API pool has a name that no other test has.
async fn open(db: &TestDb, api: PoolOptions, monitor: MonitorOptions) -> Db {
    db_layer::open(Options::new(config(db)).api(api).monitor(monitor)).await.expect("an open database")
}

fn names(db: &Db) -> Vec<&'static str> {
    db.alerts().iter().map(|alert| alert.rule.name).collect()
}

#[db_testkit::test]
async fn a_pool_of_which_most_is_in_use_is_an_alert_in_the_list_and_in_the_log(db: TestDb) {
    let log = Log::of_this_process("trace");
    let layer = open(&db, PoolOptions::api().name("crowded"), MonitorOptions::default()).await;
    let held = try_join_all((0..8).map(|_| layer.api().acquire())).await.expect("connections");
    let more = layer.api().acquire().await.expect("a connection");
    until("an alert", async || names(&layer).contains(&"PoolUtilization")).await;

    let mut alerts = layer.alerts();
    alerts.retain(|alert| alert.rule.name == "PoolUtilization");
    assert_eq!(alerts[0].to_string(), "WARNING: Database connection pool at 90% utilization (crowded)");
    assert_eq!((alerts.len(), alerts[0].pool.as_deref()), (1, Some("crowded")));
    let line = ["WARN", "PoolUtilization", "pool=\"crowded\"", &alerts[0].to_string(), alerts[0].rule.action];
    until("its line", async || log.count(&line) == 1).await;
    drop((held, more));
}

#[db_testkit::test]
async fn an_alert_ends_when_its_reason_does(db: TestDb) {
    keys_on_record(&db).await;
    let log = Log::of_this_process("trace");
    let (right, wrong) = (Key::generate().expect("a key"), Key::generate().expect("a key"));
    let file = NamedTempFile::new().expect("a file");
    let write = |key: &Key| std::fs::write(file.path(), key.to_hex().expose_secret()).expect("written");
    write(&right);
    let keys = KeySources::new(KeySource::File(file.path().to_owned()));
    let holding = KeyOptions::default().renew(Duration::from_millis(50));
    let bus = BusOptions::default().namespace("keys");
    let options = Options::new(config(&db)).bus(bus).keys(keys).holding(holding);
    let layer = db_layer::open(options).await.expect("an open database");
    until("a look", async || layer.health().clock_offset.is_some()).await;
    assert!(!names(&layer).contains(&"EncryptionKeys"), "all is well");

    write(&wrong);
    until("an alert", async || names(&layer).contains(&"EncryptionKeys")).await;
    write(&right);
    until("its end", async || !names(&layer).contains(&"EncryptionKeys")).await;

    let of = |parts: &[&str]| log.count(&[parts, &["EncryptionKeys", "namespace=\"keys\""]].concat());
    until("its lines", async || of(&["INFO", "alert cleared"]) == 1).await;
    assert_eq!(of(&["ERROR", "CRITICAL: The encryption keys need somebody"]), 1);
}

#[db_testkit::test]
async fn a_subscription_that_begins_has_lost_nothing(db: TestDb) {
    let log = Log::of_this_process("trace");
    let monitor = MonitorOptions::default().log_every(Duration::from_millis(1));
    let bus = BusOptions::default().namespace("begins");
    let options = Options::new(config(&db)).bus(bus).monitor(monitor);
    let layer = db_layer::open(options).await.expect("an open database");
    let looks = || log.count(&["bus figures", "namespace=\"begins\""]);
    until("a look before", async || looks() > 0).await;
    let mut channel = layer.bus().listen(&Channel::new("begins").expect("a channel"), 1);

    let first = tokio::time::timeout(PATIENCE, channel.recv()).await.expect("in time");
    assert!(matches!(first, Some(Delivery::Gap(gap)) if gap.reason == GapReason::Started), "{first:?}");
    let before = looks();
    // The first may have begun before.
    until("a look", async || looks() > before + 1).await;
    assert_eq!(layer.bus().state().received_gaps.of(GapReason::Started), 1);
    assert!(!names(&layer).contains(&"NotificationsLost"), "{:?}", layer.alerts());
}

#[db_testkit::test]
async fn the_clocks_are_compared(db: TestDb) {
    let layer = open(&db, PoolOptions::api(), MonitorOptions::default()).await;

    until("a look", async || layer.health().clock_offset.is_some()).await;

    // It is the same machine, and a look takes a second at most.
    let offset = layer.health().clock_offset.expect("a look");
    assert!(offset.abs() < 1.0, "{offset}");
}

#[db_testkit::test]
async fn figures_are_logged_for_each_pool_and_left_out_by_choice_when_nothing_has_changed(db: TestDb) {
    let log = Log::of_this_process("trace");
    let often = MonitorOptions::default().log_every(Duration::from_millis(1));
    let never = MonitorOptions::default().log_every(Duration::ZERO);
    let loud = open(&db, PoolOptions::api().name("loud"), often).await;
    let quiet = open(&db, PoolOptions::api().name("quiet"), often.quiet(true)).await;
    let silent = open(&db, PoolOptions::api().name("silent"), never).await;
    let figures = |pool: &str| log.lines_with(&["INFO", "pool figures", &format!("pool=\"{pool}\"")]);

    until("the figures of three looks", async || figures("loud").len() >= 3).await;
    assert_eq!(figures("quiet").len(), 1, "nothing has changed");
    sqlx::query("select 1").execute(quiet.api()).await.expect("an answer");
    let parts = ["total=1", "idle=1", "waiting=0", "in_use=0", "max=10", "utilization=\"0.00%\""];
    let is_idle = |line: &String| parts.iter().all(|part| line.contains(part));
    until("the change", async || figures("quiet").iter().any(is_idle)).await;
    let acquired = figures("quiet").iter().filter(|line| line.contains("acquired=1")).count();
    assert_eq!(acquired, 1, "since the block before: {:?}", figures("quiet"));

    let blocks = figures("quiet").len();
    let subscription = quiet.bus().subscribe(&Topic::new("t").expect("a topic"), 1);
    until("a change of the bus", async || figures("quiet").len() > blocks).await;
    assert!(!log.lines_with(&["INFO", "pool figures", "pool=\"backend\""]).is_empty());
    assert!(log.count(&["bus figures", "connected=true"]) >= 3 && log.count(&["stream figures"]) >= 3);
    assert_eq!(figures("silent"), [""; 0]);
    drop((loud, silent, subscription));
}

/// The count of the statement with this text.
fn of<'c>(counts: &'c StatementCounts, text: &str) -> &'c StatementCount {
    let mut found = counts.statements.iter().filter(|count| count.text == text);
    let count = found.next().unwrap_or_else(|| panic!("{text} in {counts:#?}"));
    assert!(found.next().is_none(), "one count for {text}: {counts:#?}");
    count
}

#[db_testkit::test]
async fn statements_are_counted_by_name_and_text_with_their_lines(db: TestDb) {
    let layer = open(&db, PoolOptions::api(), MonitorOptions::default()).await;
    for n in 1..=3 {
        let sql = format!("select generate_series(1, {n})\n  -- of {n}\n  where 'a{n}' <> ''");
        sqlx::query(AssertSqlSafe(sql)).fetch_all(layer.api()).await.expect("rows");
    }
    let line = line!() - 2;
    sqlx::query("select 1 / $1::int").bind(0).execute(layer.backend()).await.expect_err("division by zero");
    for sql in ["select 'hunter2'", "select 'hunter3'"] {
        sqlx::query(sql).execute(layer.api().named("a\nname")).await.expect("an answer");
    }
    sqlx::query("select 'hunter2'").execute(layer.api()).await.expect("an answer");

    let counts = layer.statement_counts().expect("they are counted");

    let series = of(&counts, "select generate_series(…, …) where '…' <> '…'");
    assert_eq!((series.calls, series.rows, series.errors, series.name), (3, 6, 0, None));
    assert!(series.max <= series.total && series.mean() <= series.max, "{series:?}");
    assert!(!series.max.is_zero() && series.total <= 3 * series.max, "{series:?}");
    let lines: Vec<_> = series.lines.iter().map(|(at, calls)| (at.to_string(), *calls)).collect();
    assert_eq!(lines, [(format!("{}:{line}", file!()), 3)]);
    let failed = of(&counts, "select … / $1::int");
    assert_eq!((failed.calls, failed.errors, failed.rows), (1, 1, 0));
    let calls = |name| {
        let mut all = counts.statements.iter().filter(|it| it.text == "select '…'" && it.name == name);
        (all.next().expect("a count").calls, all.count())
    };
    assert_eq!((calls(Some("a\nname")), calls(None)), ((2, 0), (1, 0)), "a name counts for itself");
    assert!(!format!("{counts:?}").contains("hunter"));
    let totals: Vec<_> = counts.statements.iter().map(|count| count.total).collect();
    assert!(totals.is_sorted_by(|one, next| one >= next), "{totals:?}");

    layer.reset_statement_counts();
    let anew = layer.statement_counts().expect("they are counted");
    assert!(anew.statements.is_empty() && anew.since >= counts.since, "{anew:?}");
}

#[db_testkit::test]
async fn of_many_statements_those_that_are_used_stay_and_the_others_make_room(db: TestDb) {
    let layer = open(&db, PoolOptions::api().max(1), MonitorOptions::default().statements(40)).await;
    let none = open(&db, PoolOptions::api(), MonitorOptions::default().statements(0)).await;
    let run = async |sql: String| {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(layer.api()).await.expect("an answer");
    };
    for n in 0..400 {
        run(format!("select 1 as a{n}")).await;
        run("select 1 as hot".to_owned()).await;
        if n < 20 {
            run("select 1 as cooling".to_owned()).await;
        }
    }
    sqlx::query("select 1").execute(none.api()).await.expect("an answer");

    let counts = layer.statement_counts().expect("they are counted");

    assert!(counts.statements.len() <= 40 && counts.statements.len() > 35, "{}", counts.statements.len());
    assert_eq!(of(&counts, "select … as hot").calls, 400);
    assert_eq!(of(&counts, "select … as cooling").calls, 20);
    assert_eq!(of(&counts, "select … as a399").calls, 1, "the newest is there");
    assert_eq!(counts.forgotten + counts.statements.len() as u64, 402);
    for n in 400..1300 {
        run(format!("select 1 as a{n}")).await;
    }
    let counts = layer.statement_counts().expect("they are counted");
    assert_eq!(of(&counts, "select … as hot").calls, 400);
    let is_cooling = |count: &StatementCount| count.text == "select … as cooling";
    assert!(!counts.statements.iter().any(is_cooling), "it was used long ago: {counts:#?}");
    assert!(none.statement_counts().is_none());
}

#[db_testkit::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_several_threads_ran_is_counted_together(db: TestDb) {
    let layer = open(&db, PoolOptions::api(), MonitorOptions::default()).await;
    let mut work = JoinSet::new();
    for _ in 0..8 {
        let layer = layer.clone();
        work.spawn(async move {
            for _ in 0..50 {
                sqlx::query("select 1 as shared").execute(layer.api()).await.expect("an answer");
            }
            std::thread::current().id()
        });
    }
    let threads: HashSet<_> = work.join_all().await.into_iter().collect();

    let counts = layer.statement_counts().expect("they are counted");
    let shared = of(&counts, "select … as shared");
    assert_eq!((shared.calls, shared.lines.len()), (400, 1), "by {} threads", threads.len());
}

#[db_testkit::test]
async fn slow_queries_are_ours_where_the_extension_is_not_installed_or_does_not_answer(db: TestDb) {
    let backend = PoolOptions::backend().max(1).acquire_timeout(PATIENCE);
    let options = Options::new(config(&db)).backend(backend);
    let layer = db_layer::open(options).await.expect("an open database");
    sqlx::query("select pg_sleep(0.05)").execute(layer.api()).await.expect("an answer");

    let slow = layer.slow_queries(1).await;
    let why = NoServerCount::NotInstalled;
    assert_eq!(slow.source, SlowSource::Process { why });
    assert_eq!(slow.queries[0].text, "select pg_sleep(…)");
    assert_eq!((slow.queries.len(), slow.queries[0].calls), (1, 1));
    assert!(slow.queries[0].mean >= Duration::from_millis(50), "{slow:?}");

    sqlx::raw_sql("create extension pg_stat_statements").execute(&db.pool()).await.expect("installed");
    let slow = layer.slow_queries(1).await;
    let why = NoServerCount::NotReadable;
    assert_eq!(slow.source, SlowSource::Process { why }, "the server does not load its library");

    let held = layer.backend().acquire().await.expect("a connection");
    let slow = layer.slow_queries(1).await;
    let why = NoServerCount::Late;
    assert_eq!(slow.source, SlowSource::Process { why });
    assert_eq!(slow.queries.len(), 1);
    drop(held);
}

#[tokio::test]
async fn slow_queries_are_the_servers_without_utility_statements_where_the_extension_is() {
    let server = Server::throwaway().in_memory().setting("shared_preload_libraries", "pg_stat_statements");
    let server = tokio::task::spawn_blocking(|| server.start()).await.expect("no panic").expect("a server");
    let config = server.url("postgres").parse().expect("an address");
    let layer = db_layer::open(Options::new(config)).await.expect("an open database");
    let run = async |sql: &'static str| {
        sqlx::raw_sql(sql).execute(layer.api()).await.expect(sql);
    };
    // In a schema whose name has to be quoted.
    run("create schema \"a \"\" b\"; create extension pg_stat_statements schema \"a \"\" b\"").await;
    run("create role other password 'hunter2'").await;
    run("alter role other password 'hunter3'").await;
    run("do $$ begin perform pg_sleep(0.2); end $$").await;
    run("select pg_sleep(0.1), 'hunter4'").await;
    run("create database elsewhere").await;
    let mut elsewhere = PgConnection::connect(&server.url("elsewhere")).await.expect("a connection");
    sqlx::raw_sql("select 1 as of_another_database").execute(&mut elsewhere).await.expect("an answer");
    run("grant pg_monitor to other; set role other; select 1 as of_another_role; reset role").await;

    let slow = layer.slow_queries(500).await;

    assert_eq!(slow.source, SlowSource::Server);
    let found = slow.queries.iter().find(|query| query.text.contains("pg_sleep")).expect("the statement");
    assert!(found.text.starts_with("select pg_sleep(") && found.calls == 1, "{found:?}");
    assert!(found.total >= Duration::from_millis(100) && found.rows == 1, "{found:?}");
    assert_eq!(layer.slow_queries(2).await.queries.len(), 2);
    let shown = format!("{slow:?}").to_lowercase();
    for hidden in ["hunter", "role", "perform", "create", "set ", "another"] {
        assert!(!shown.contains(hidden), "{hidden} in {slow:#?}");
    }
    layer.shutdown(Duration::from_secs(5)).await;
}

#[test]
fn the_rules_of_prometheus_are_those_of_the_table() {
    let file = include_str!("../../../../deploy/prometheus/alerts.yml");
    assert_eq!(
        file,
        alerts::prometheus(),
        "cargo run -p db-layer --example alerts > deploy/prometheus/alerts.yml"
    );
}

#[test]
fn the_page_of_alerts_lists_each_with_what_to_do() {
    let page = include_str!("../../../../docs/alerts.md");
    let listed: BTreeSet<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    let rows: Vec<String> = alerts::all().iter().map(row).collect();
    assert_eq!(listed, rows.iter().map(String::as_str).collect());
}

fn row(rule: &Rule) -> String {
    let Rule { name, severity, what, action, above, lasts, keeps, unit, .. } = rule;
    let what = what.replace("{}", "…");
    let lasts = if lasts.is_zero() { String::new() } else { format!(" for {lasts:?}") };
    let (severity, unit) = (severity.as_str(), unit.as_str());
    let above = format!("{above} {unit}");
    format!("| `{name}` | {severity} | {what} | above {}{lasts} | {keeps:?} | {action} |", above.trim())
}
