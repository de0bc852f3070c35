//! The vectors of `tests/golden` on the wire: a bus sends and reads exactly these forms.

#[path = "../golden/read.rs"]
mod read;

use db_notify::{Delivery, GapReason, WatchOptions, WatchedTopics};
use db_testkit::{TestDb, until};
use sqlx::postgres::PgListener;
use tokio::time::timeout;

use crate::support::{PATIENCE, bus, gap, next, topic};
use read::{Vector, entries, vectors};

const CHANNEL: &str = "db_notify.default";

fn wire() -> Vec<Vector> {
    vectors(include_str!("../golden/wire.txt"), "notify")
}

async fn plain(db: &TestDb) -> PgListener {
    let mut listener = PgListener::connect_with(&db.pool()).await.expect("a listener");
    listener.listen(CHANNEL).await.expect("listens");
    listener
}

async fn heard(plain: &mut PgListener) -> String {
    let notification = timeout(PATIENCE, plain.recv()).await.expect("in time").expect("a notification");
    assert_eq!(notification.channel(), CHANNEL);
    notification.payload().to_owned()
}

async fn say(db: &TestDb, payload: &str) {
    sqlx::query("select pg_notify($1, $2)")
        .bind(CHANNEL)
        .bind(payload)
        .execute(&db.pool())
        .await
        .expect("sent");
}

/// On one thread, notifications that are made together are sent together.
#[tokio::test]
async fn a_bus_sends_the_fixed_form() {
    let db = TestDb::empty().await.expect("a database");
    let mut plain = plain(&db).await;
    let bus = bus(&db).await;
    assert_eq!(heard(&mut plain).await, "1", "to see whether anything arrives");

    for (payload, says) in wire() {
        match &says[..] {
            [("everything", _)] => {
                for n in 0..=10_000 {
                    bus.notify_soon_with(&topic("t"), &n.to_string()).expect("accepted");
                }
            }
            [("nothing" | "unreadable", _)] => continue,
            says => {
                for (name, payload) in entries(says) {
                    bus.notify_soon_with(&topic(name), payload).expect("accepted");
                }
            }
        }
        assert_eq!(heard(&mut plain).await, payload);
    }
    assert!(bus.close(PATIENCE).await, "in time");
}

#[db_testkit::test]
async fn a_bus_reads_the_fixed_form(db: TestDb) {
    let bus = bus(&db).await;
    for (payload, says) in wire() {
        let mut all = bus.subscribe(&topic("the last"), 10);
        let entries = match &says[..] {
            [("everything" | "nothing" | "unreadable", _)] => vec![],
            says => entries(says),
        };
        for (name, _) in &entries {
            all.subscribe(&topic(name));
        }

        say(&db, payload).await;
        bus.notify(&topic("the last")).await.expect("sent");

        match says[0].0 {
            "everything" => assert_eq!(gap(&mut all).await, GapReason::Overflow),
            "unreadable" => assert_eq!(gap(&mut all).await, GapReason::Unreadable, "{payload}"),
            _ => {}
        }
        for expected in entries.into_iter().chain([("the last", "")]) {
            let Delivery::Notification(notification) = next(&mut all).await else {
                panic!("a gap: {payload}")
            };
            let name = notification.topic().expect("a topic").as_str();
            assert_eq!((name, notification.payload()), expected, "{payload}");
        }
    }
}

#[db_testkit::test]
async fn a_map_announces_in_the_fixed_form(db: TestDb) {
    let mut plain = plain(&db).await;
    let bus = bus(&db).await;
    assert_eq!(heard(&mut plain).await, "1", "to see whether anything arrives");
    let watched = WatchedTopics::new(&bus, &topic("watched"), &WatchOptions::default());

    let watch = watched.watch(&topic("build_events_42"), 1);
    let begins = heard(&mut plain).await;
    drop(watch);
    let ends = heard(&mut plain).await;

    let (head, node) = begins.split_at(14);
    let (node, rest) = node.split_at(16);
    assert_eq!((head, rest), ("17:38:watched+", ".1 15:build_events_42"), "{begins}");
    assert!(node.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{begins}");
    assert_eq!(ends, format!("17:38:watched-{node}.2 15:build_events_42"));
}

#[db_testkit::test]
async fn a_map_reads_the_fixed_form(db: TestDb) {
    let bus = bus(&db).await;
    let watched = WatchedTopics::new(&bus, &topic("watched"), &WatchOptions::default());
    let names = |says: &[(&str, &'static str)]| -> Vec<&'static str> {
        says.iter().filter(|(word, _)| *word == "topic").map(|(_, name)| *name).collect()
    };

    for (text, says) in vectors(include_str!("../golden/announcements.txt"), "announcement") {
        say(&db, &format!("17:{}:watched{text}", text.len())).await;
        let is_watched = says[0].0 == "watches";
        for name in names(&says) {
            until(text, async || watched.is_watched(&topic(name)) == is_watched).await;
        }
    }
    assert!(watched.is_watched(&topic("build_events_171")), "of the other announcement");
}
