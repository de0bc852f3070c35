//! Event logs as server-sent events.

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use db_axum::sse::{self, Cursor};
use db_layer::{Db, LogId, NewEvent};
use db_testkit::TestDb;
use futures_util::StreamExt;
use tokio::time::timeout;

use crate::support::{PATIENCE, Served, client, open, serve};

async fn events(State(db): State<Db>, Path(log): Path<i64>, cursor: Cursor) -> db_axum::Result<Response> {
    sse::events(&db, LogId(log), cursor).await
}

async fn served(db: &Db) -> Served {
    serve(Router::new().route("/{log}", get(events)).with_state(db.clone())).await
}

async fn body(served: &Served, path: &str, last: Option<&str>) -> (u16, String) {
    let mut request = client().get(format!("{}/{path}", served.address));
    if let Some(last) = last {
        request = request.header("Last-Event-ID", last);
    }
    let answer = request.send().await.expect("an answer");
    (answer.status().as_u16(), answer.text().await.expect("text"))
}

#[db_testkit::test]
async fn a_finished_log_is_sent_whole_and_ended(db: TestDb) {
    let layer = open(&db).await;
    let served = served(&layer).await;
    let log = layer.events().create().await.expect("a log");
    let lines = [NewEvent::new("line", r#"{"text":"<script>"}"#), NewEvent::new("line", "a\nb\r\nc\rd\n")];
    layer.events().append(log, &lines).await.expect("appended");
    layer.events().finish(log, &[NewEvent::new("end", "{}")]).await.expect("finished");

    let (status, text) = body(&served, &log.to_string(), None).await;

    assert_eq!(status, 200);
    assert_eq!(
        text,
        "retry: 1000\n\n\
         id: 1\nevent: line\ndata: {\"text\":\"<script>\"}\n\n\
         id: 2\nevent: line\ndata: a\ndata: b\ndata: c\ndata: d\ndata: \n\n\
         id: 3\nevent: end\ndata: {}\n\n\
         event: stream-end\ndata: finished\n\n"
    );
}

#[db_testkit::test]
async fn a_client_resumes_after_the_event_it_names(db: TestDb) {
    let layer = open(&db).await;
    let served = served(&layer).await;
    let log = layer.events().create().await.expect("a log");
    let three: Vec<NewEvent> = (1..=3).map(|n| NewEvent::new("n", n.to_string())).collect();
    layer.events().finish(log, &three).await.expect("finished");
    let ids = async |path: String, last: Option<&str>| {
        let (status, text) = body(&served, &path, last).await;
        let ids: Vec<i64> = text
            .lines()
            .filter_map(|line| line.strip_prefix("id: "))
            .map(|id| id.parse().expect("an id"))
            .collect();
        (status, ids)
    };

    assert_eq!(ids(format!("{log}"), None).await, (200, vec![1, 2, 3]));
    assert_eq!(ids(format!("{log}"), Some("1")).await, (200, vec![2, 3]));
    assert_eq!(ids(format!("{log}?from=2"), None).await, (200, vec![3]));
    assert_eq!(ids(format!("{log}?from=0"), Some("2")).await, (200, vec![3]), "the header is newer");
    // Tells an EventSource to stay away.
    assert_eq!(ids(format!("{log}"), Some("3")).await, (204, vec![]));
    for (path, last) in [("?from=x", None), ("?from=-1", None), ("", Some("x")), ("", Some("-1"))] {
        assert_eq!(ids(format!("{log}{path}"), last).await.0, 400, "{path} {last:?}");
    }
    assert_eq!(ids("999999".to_owned(), None).await.0, 404);
    layer.events().remove(log).await.expect("removed");
    assert_eq!(ids(format!("{log}"), None).await.0, 410);
}

#[db_testkit::test]
async fn events_arrive_while_they_are_appended_and_the_beginning_of_a_shutdown_ends_the_answer(db: TestDb) {
    let layer = open(&db).await;
    let served = served(&layer).await;
    let log = layer.events().create().await.expect("a log");
    let answer = client().get(format!("{}/{log}", served.address)).send().await.expect("an answer");
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut chunks = answer.bytes_stream();
    let mut until = async |wanted: &str| {
        let mut text = String::new();
        while !text.contains(wanted) {
            let chunk =
                timeout(PATIENCE, chunks.next()).await.expect("in time").expect("more").expect("no error");
            text += std::str::from_utf8(&chunk).expect("text");
        }
    };
    until("retry: 1000").await;

    for n in 1..=3 {
        layer.events().append(log, &[NewEvent::new("n", n.to_string())]).await.expect("appended");
        until(&format!("id: {n}\nevent: n\ndata: {n}\n\n")).await;
    }
    // What shutdown begins with; pools and bus are still open.
    layer.closing().cancel();

    until("retry: 200\nevent: stream-end\ndata: closing\n\n").await;
    assert!(timeout(PATIENCE, chunks.next()).await.expect("in time").is_none(), "the answer has ended");
}
