//! The view for SQL prompts.

use db_testkit::TestDb;

use crate::support::{events, numbered};

#[db_testkit::test(migrations = "../../migrations")]
async fn the_view_shows_one_row_an_event(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    events.append(log, &numbered(1, 3)).await.expect("appended");
    events
        .append(log, &[db_events::NewEvent::new("a", "x"), db_events::NewEvent::new("b", "y")])
        .await
        .expect("appended");

    let rows: Vec<(i64, String, String)> =
        sqlx::query_as("select id, type, data from event_log_events where log = $1 order by id")
            .bind(log.0)
            .fetch_all(&db.pool())
            .await
            .expect("rows");

    let expected = [(1, "n", "1"), (2, "n", "2"), (3, "n", "3"), (4, "a", "x"), (5, "b", "y")];
    assert_eq!(rows, expected.map(|(id, kind, data)| (id, kind.to_owned(), data.to_owned())));
}
