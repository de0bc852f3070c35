//! The tables: their copies, and the view for SQL prompts.

use std::path::Path;

use db_events::SCHEMA;
use db_testkit::TestDb;

use crate::support::{events, numbered};

#[test]
fn the_workspaces_migrations_are_copies_of_the_crates() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
    for schema in SCHEMA {
        for (suffix, text) in [("up", schema.up), ("down", schema.down)] {
            let ending = format!("_{}.{suffix}.sql", schema.name);
            let file = std::fs::read_dir(&folder)
                .expect("migrations")
                .map(|entry| entry.expect("an entry").path())
                .find(|path| path.to_string_lossy().ends_with(&ending))
                .unwrap_or_else(|| panic!("no file ends in {ending}"));
            assert_eq!(std::fs::read_to_string(&file).expect("text"), text, "{}", file.display());
        }
    }
}

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
