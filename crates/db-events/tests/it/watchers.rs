//! The cost of many watchers, and their effect on each other.

use std::time::Duration;

use db_core::{Config, Pool, PoolOptions};
use db_events::{Error, EventLogs, EventStream, LogId, NewEvent, POLL_FLOOR, Selection};
use db_notify::{Bus, BusOptions};
use db_testkit::{Stop, TestDb, TestServer, poll_then_drop, until};
use futures_util::FutureExt;
use harness::{Process, answer, resident, told};
use tokio::task::{JoinSet, yield_now};
use tokio::time::timeout;

use crate::support::{
    PATIENCE, append_by_hand, assert_dense, ended, events, next_batch, numbered, read_to_end, run,
};

const MANY: usize = 5000;

/// The most memory of one watcher, in bytes.
const MOST: usize = 20 << 10;

async fn logs_by_hand(db: &TestDb, count: usize) -> Vec<LogId> {
    let insert = "insert into event_logs select from generate_series(1, $1) returning id";
    let made: Result<Vec<i64>, _> =
        sqlx::query_scalar(insert).bind(i64::try_from(count).expect("few")).fetch_all(&db.pool()).await;
    made.expect("logs").into_iter().map(LogId).collect()
}

/// Runs in a process of its own, to measure its memory: opens as many streams as ordered, each in a task that waits.
#[test]
fn a_process_that_watches() {
    let Some((address, mut orders)) = told() else { return };
    run(async {
        let config = Config::from_url(&address).expect("an address");
        let bus = Bus::open(&config, BusOptions::default()).await.expect("a bus");
        let events = EventLogs::new(Pool::new(&config, PoolOptions::backend()), &bus);
        let mut tasks: JoinSet<()> = JoinSet::new();
        while let Some(order) = orders.recv().await {
            let (log, count) = order.split_once(' ').expect("a log and a number");
            let log = LogId(log.parse().expect("a log"));
            let count: usize = count.parse().expect("a number");
            let (live, before) = (events.clone(), tasks.len());
            let (sender, mut waiting) = tokio::sync::mpsc::unbounded_channel();
            for _ in 0..count {
                let (mut stream, sender) = (live.stream(log, 0), sender.clone());
                tasks.spawn(async move {
                    // Reads the existing events, so that the stream is live afterwards.
                    stream.next_batch().await.expect("no error").expect("an event");
                    sender.send(()).expect("somebody counts");
                    drop(sender);
                    let next = stream.next_batch().await;
                    panic!("nothing was appended: {next:?}");
                });
            }
            for _ in 0..count {
                waiting.recv().await.expect("all of them");
            }
            assert_eq!(tasks.len(), before + count);
            // After all requests have ended, remaining work is done.
            let mut pages = 0;
            while pages != events.state().pages {
                pages = events.state().pages;
                yield_now().await;
            }
            answer(&resident().to_string());
        }
    });
}

#[db_testkit::test(migrations = "../../migrations")]
async fn five_thousand_watchers_of_a_log_take_at_most_20_kib_each(db: TestDb) {
    let log = logs_by_hand(&db, 1).await[0];
    append_by_hand(&db, log, 1).await;
    let mut process = Process::start("watchers::a_process_that_watches", &db.url());
    // The first streams open all connections and allocate what is allocated once.
    let warm = process.ask(&format!("{log} 200")).await;

    let full = process.ask(&format!("{log} {MANY}")).await;

    let (warm, full): (usize, usize) = (warm.parse().expect("bytes"), full.parse().expect("bytes"));
    let each = full.saturating_sub(warm) / MANY;
    println!("{each} bytes for each of {MANY} watchers; {warm} before, {full} after");
    assert!(each <= MOST, "{each} bytes for each");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn five_thousand_idle_logs_cost_one_query_for_each_poll_and_no_page(db: TestDb) {
    let events = events(&db).await;
    let mut tasks: JoinSet<()> = JoinSet::new();
    let logs = logs_by_hand(&db, MANY).await;
    for log in &logs {
        let mut stream = events.stream(*log, 0);
        tasks.spawn(async move {
            let next = stream.next_batch().await;
            panic!("nothing was appended: {next:?}");
        });
    }
    // Each stream has read a page, subscribed, and read one more.
    let asked = || events.state().pages >= 2 * u64::try_from(MANY).expect("few");
    let looked = timeout(PATIENCE * 2, until_all(&db, asked));
    looked.await.expect("all of them have looked");
    let begun = events.state();

    let floors = timeout(POLL_FLOOR * 4 + PATIENCE, async {
        while events.state().head_polls < begun.head_polls + 2 {
            assert!(tasks.try_join_next().is_none(), "a watcher has ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    floors.await.expect("two looks");

    let state = events.state();
    assert_eq!(state.pages, begun.pages, "a log that is idle is not read");
    assert_eq!(
        (state.head_polls, state.followed),
        (begun.head_polls + 2, MANY),
        "one query looks at all of them"
    );
}

/// Waits for a state, and until no statement runs.
async fn until_all(db: &TestDb, holds: impl Fn() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    db.until_quiet().await;
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_watcher_from_beyond_the_end_gets_an_error_and_the_others_follow(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    events.append(log, &numbered(1, 3)).await.expect("appended");
    let mut stream = events.stream(log, 0);
    assert_eq!(next_batch(&mut stream).await.expect("what is there").len(), 3);
    let mut beyond = events.stream(log, 1000);

    let told = ended(&mut beyond).await;

    assert!(matches!(told, Error::Rewound { log: which, last: 3 } if which == log), "{told:?}");
    let pages = events.state().pages;
    for n in 4..=13 {
        assert!(poll_then_drop(stream.next_batch(), 1).await.is_none());
        events.append(log, &numbered(n, 1)).await.expect("appended");
        assert_eq!(next_batch(&mut stream).await.expect("more")[0].id, n);
    }
    let state = events.state();
    assert!(state.pages - pages <= 2 * 10 + 2 + state.head_polls, "{pages} pages before, now {state:?}");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_database_that_is_slower_than_the_pool_allows_ends_neither_a_stream_nor_an_appender(db: TestDb) {
    let config = Config::from_url(&db.url()).expect("the test database's address");
    let bus = Bus::open(&config, BusOptions::default()).await.expect("a bus");
    let short = PoolOptions::backend().statement_timeout(Duration::from_millis(200));
    let events = EventLogs::new(Pool::new(&config, short), &bus);
    let log = events.create().await.expect("a log");
    let appender = events.appender(log);
    appender.append(NewEvent::new("n", "1")).await.expect("stored");
    let (mut live, mut late) = (events.stream(log, 0), events.stream(log, 0));
    next_batch(&mut live).await.expect("the first");
    let mut blocker = db.pool().begin().await.expect("begun");
    sqlx::query("lock table event_log_batches").execute(&mut *blocker).await.expect("locked");

    let mut tasks = JoinSet::new();
    tasks.spawn(async move { live.next_batch().await.map(|batch| batch.expect("more").last_id()) });
    tasks.spawn(async move { late.next_batch().await.map(|batch| batch.expect("more").last_id().max(2)) });
    tasks.spawn(async move { appender.append(NewEvent::new("n", "2")).await });
    // Each waiting statement is cancelled, and another takes its place.
    let waiting = async || {
        let sql = "select coalesce(max(query_start)::text, '') from pg_stat_activity
                   where datname = current_database() and application_name = 'backend' and wait_event_type = 'Lock'";
        sqlx::query_scalar::<_, String>(sql).fetch_one(&db.pool()).await.expect("what waits")
    };
    for _ in 0..4 {
        let before = waiting().await;
        until("others wait", async || !["", &before].contains(&waiting().await.as_str())).await;
    }
    assert!(tasks.try_join_next().is_none(), "it has ended");
    blocker.rollback().await.expect("released");

    while let Some(ended) = timeout(PATIENCE, tasks.join_next()).await.expect("in time") {
        assert_eq!(ended.expect("no panic").expect("no error"), 2);
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_log_that_is_finished_while_a_watcher_lags_ends_it_after_its_last_event(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let (mut slow, mut quick) = (events.stream(log, 0), events.stream(log, 0));
    events.append(log, &numbered(1, 1)).await.expect("appended");
    for stream in [&mut slow, &mut quick] {
        assert_eq!(next_batch(stream).await.expect("the first").len(), 1);
    }

    for n in 2..=100 {
        events.append(log, &numbered(n, 1)).await.expect("appended");
        assert_eq!(next_batch(&mut quick).await.expect("more")[0].id, n);
    }
    events.finish(log, &numbered(101, 1)).await.expect("finished");
    assert_eq!(read_to_end(quick).await.len(), 1);

    let rest = read_to_end(slow).await;
    assert_eq!(rest.len(), 100);
    assert_dense(&rest, 2);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn two_handles_of_their_own_in_a_process_have_readers_of_their_own(db: TestDb) {
    let (one, other) = (events(&db).await, events(&db).await);
    let log = one.create().await.expect("a log");
    let clone = one.clone();
    let mut streams = [one.stream(log, 0), clone.stream(log, 0), other.stream(log, 0)];
    other.append(log, &numbered(1, 1)).await.expect("appended");
    for stream in &mut streams {
        assert_eq!(next_batch(stream).await.expect("the first")[0].id, 1);
    }
    assert_eq!([one.state().followed, clone.state().followed, other.state().followed], [1, 1, 1]);
    let [first, second, third] = streams;
    drop((first, second));

    until("the clones follow nothing", async || one.state().followed == 0).await;
    assert_eq!(other.state().followed, 1);
    drop(third);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_stream_that_is_never_polled_reads_nothing_and_delays_no_other_stream(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let idle = events.stream(log, 0);
    let line = "x".repeat(1 << 20);

    for _ in 0..3 {
        events.append(log, &[NewEvent::new("n", line.as_str())]).await.expect("appended");
    }
    assert_eq!((events.state().pages, events.state().followed), (0, 0), "it has not even a place");
    let mut stream = events.stream(log, 3);
    for n in 4..=43 {
        events.append(log, &numbered(n, 1)).await.expect("appended");
        assert_eq!(next_batch(&mut stream).await.expect("more")[0].id, n);
    }
    drop(stream);
    events.finish(log, &numbered(44, 1)).await.expect("finished");

    assert_eq!(read_to_end(idle).await.len(), 44, "and sees all of it when it is");
    assert_eq!(events.state().followed, 0);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn streams_outlive_the_handle_and_still_poll(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    events.append(log, &numbered(1, 1)).await.expect("appended");
    let mut stream = events.stream(log, 0);
    assert_eq!(next_batch(&mut stream).await.expect("the first").len(), 1);

    drop(events);

    // No notification is sent: the poll finds the events.
    for id in 2..=3 {
        append_by_hand(&db, log, id).await;
        assert_eq!(next_batch(&mut stream).await.expect("more")[0].id, id);
    }
    drop(stream);
    db.until_sessions("no session is left of it", <[_]>::is_empty).await;
}

#[db_testkit::test(migrations = "../../migrations")]
async fn each_lost_link_is_followed_by_a_poll_long_before_the_floor(db: TestDb) {
    const LOSSES: i64 = 5;
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    append_by_hand(&db, log, 1).await;
    let mut stream = events.stream(log, 0);
    assert_eq!(next_batch(&mut stream).await.expect("the first")[0].id, 1);
    assert!(stream.next_batch().now_or_never().is_none(), "it is live");

    let kill = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity
                where datname = current_database() and application_name = 'bus'";
    let seen = timeout(POLL_FLOOR, async {
        for id in 2..2 + LOSSES {
            append_by_hand(&db, log, id).await;
            sqlx::query(kill).execute(&db.pool()).await.expect("killed");
            assert_eq!(next_batch(&mut stream).await.expect("more")[0].id, id);
        }
    });
    seen.await.expect("five losses in the time of one floor");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_next_batch_that_is_dropped_at_any_poll_loses_and_doubles_nothing(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let (mut backlog, mut live): (EventStream, EventStream) = (events.stream(log, 0), events.stream(log, 0));
    events.append(log, &numbered(1, 1)).await.expect("appended");
    let (mut seen, mut last) = (Vec::new(), 1);
    seen.extend(next_batch(&mut live).await.expect("the first"));

    // A live stream, dropped after each number of polls, before and after an append. Each of these polls may receive what the
    // dropped future left.
    for polls in 0..20 {
        let before = poll_then_drop(live.next_batch(), 1).await;
        last += 1;
        events.append(log, &numbered(last, 1)).await.expect("appended");
        let after = poll_then_drop(live.next_batch(), polls.min(2)).await;
        for batch in [before, after].into_iter().flatten() {
            seen.extend(batch.expect("no error").expect("more"));
        }
    }
    events.finish(log, &numbered(last + 1, 1)).await.expect("finished");
    last += 1;
    seen.extend(read_to_end(live).await);
    assert_eq!(i64::try_from(seen.len()).expect("few"), last);
    assert_dense(&seen, 1);

    // Existing events, and a history.
    let mut polls = 0;
    let mut found = loop {
        if let Some(batch) = poll_then_drop(backlog.next_batch(), polls).await {
            break batch.expect("no error").expect("events").to_vec();
        }
        assert_eq!(backlog.cursor(), 0, "after {polls} polls");
        polls += 1;
    };
    found.extend(read_to_end(backlog).await);
    assert_eq!(found, seen);
    let mut history = events.history(log, Selection::default());
    let mut polls = 0;
    let found = loop {
        if let Some(batch) = poll_then_drop(history.next_batch(), polls).await {
            break batch.expect("no error").expect("events");
        }
        polls += 1;
    };
    assert_eq!(found, seen);
    assert_eq!(history.next_batch().await.expect("no error"), None);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn an_appender_that_is_dropped_at_any_poll_stores_each_event_once_or_not_at_all(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let appender = events.appender(log);
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for round in 0..10 {
        for polls in 0..4 {
            let data = format!("append {round} {polls}");
            match poll_then_drop(appender.append(NewEvent::new("n", data.as_str())), polls).await {
                Some(id) => known.push((id.expect("stored"), data)),
                None => unknown.push(data),
            }
            let data = format!("push {round} {polls}");
            if let Some(pushed) =
                poll_then_drop(appender.push(NewEvent::new("n", data.as_str())), polls).await
            {
                pushed.expect("handed over");
                let flush = poll_then_drop(appender.flush(), polls).await;
                let last = match flush {
                    Some(last) => last,
                    None => appender.flush().await,
                };
                known.push((last.expect("stored"), data));
            } else {
                assert_eq!(polls, 0, "there is room");
            }
        }
    }
    let last = appender.append(NewEvent::new("n", "last")).await.expect("stored");
    known.push((last, "last".to_owned()));
    assert_eq!(appender.waiting(), 0);
    events.finish(log, &numbered(last + 1, 1)).await.expect("finished");

    let all = read_to_end(events.stream(log, 0)).await;
    assert_dense(&all, 1);
    for (id, data) in &known {
        let at: Vec<i64> = all.iter().filter(|event| event.data == *data).map(|event| event.id).collect();
        assert_eq!(at, [*id], "{data}");
    }
    for data in &unknown {
        assert!(all.iter().filter(|event| event.data == *data).count() <= 1, "{data} is there twice");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_for_a_while_costs_followers_no_event() {
    let server = TestServer::throwaway().await.expect("a server");
    let db = server.create("../../migrations").await.expect("a database");
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    events.append(log, &numbered(1, 1)).await.expect("appended");
    let mut followers = JoinSet::new();
    for _ in 0..10 {
        let mut stream = events.stream(log, 0);
        next_batch(&mut stream).await.expect("the first");
        followers.spawn(async move { read_to_end(stream).await });
    }
    let mut writer = events.writer(log, 1);
    for n in 2..=4 {
        server.restart(if n == 3 { Stop::Immediate } else { Stop::Fast }).await.expect("restarted");
        timeout(PATIENCE, writer.append(&numbered(n, 1))).await.expect("in time").expect("appended");
    }
    timeout(PATIENCE, writer.finish(&numbered(5, 1))).await.expect("in time").expect("finished");

    while let Some(seen) = timeout(PATIENCE, followers.join_next()).await.expect("in time") {
        let seen = seen.expect("no panic");
        assert_eq!(seen.len(), 4);
        assert_dense(&seen, 2);
    }
}
