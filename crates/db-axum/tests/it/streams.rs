//! Event logs as server-sent events.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use db_axum::sse::{self, Cursor};
use db_layer::db_events::{Mark, Selection, Trim};
use db_layer::{Db, LogId, NewEvent};
use db_testkit::{TestDb, until};
use futures_util::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::{PATIENCE, Served, client, open, serve};

/// More bytes than the kernel's largest buffers of both sides take.
const MEGABYTES: usize = 32;

async fn events(
    State(db): State<Db>,
    Path(log): Path<i64>,
    selection: sse::Selection,
) -> db_axum::Result<Response> {
    sse::events(&db, LogId(log), selection).await
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

/// The marks of all events of a log.
async fn marks(db: &Db, log: LogId) -> Vec<Mark> {
    let all = db.events().history(log, Selection::default()).collect().await.expect("read");
    all.iter().map(|event| event.mark).collect()
}

/// A log of `count` batches of one event, not finished.
async fn log_of(db: &TestDb, layer: &Db, count: i64) -> LogId {
    let log = layer.events().create().await.expect("a log");
    batches(db, log, (1, count)).await;
    log
}

async fn batches(db: &TestDb, log: LogId, (from, to): (i64, i64)) {
    sqlx::query("insert into event_log_batches select $1, n, n, 1, '{n}', array[n::text], false from generate_series($2, $3) as n")
        .bind(log.0)
        .bind(from)
        .bind(to)
        .execute(&db.pool())
        .await
        .expect("stored");
}

async fn lose_after(db: &TestDb, log: LogId, last: i64) {
    let lose = "delete from event_log_batches where log = $1 and last > $2";
    sqlx::query(lose).bind(log.0).bind(last).execute(&db.pool()).await.expect("lost");
}

#[db_testkit::test]
async fn a_client_from_beyond_the_end_gets_the_id_of_the_end(db: TestDb) {
    let layer = open(&db).await;
    let served = served(&layer).await;
    let log = log_of(&db, &layer, 3).await;
    let told = "retry: 1000\n\nid: 3\nevent: stream-end\ndata: rewound\n\n";

    assert_eq!(body(&served, &log.to_string(), Some("99")).await, (200, told.to_owned()));
    assert_eq!(body(&served, &format!("{log}?from=4"), None).await, (200, told.to_owned()));
    layer.events().finish(log, &[NewEvent::new("n", "4")]).await.expect("finished");
    let told = told.replace("id: 3", "id: 4");
    assert_eq!(body(&served, &log.to_string(), Some("99")).await, (200, told), "finished, too");
}

#[db_testkit::test]
async fn a_browser_that_comes_back_after_the_end_of_a_log_was_lost_gets_rewound_and_resumes(db: TestDb) {
    let layer = open(&db).await;
    let served = served(&layer).await;
    let log = log_of(&db, &layer, 10).await;
    let old = marks(&layer, log).await;
    lose_after(&db, log, 5).await;
    let told = "retry: 1000\n\nid: 0\nevent: stream-end\ndata: rewound\n\n";
    let last = format!("10-{}", old[9]);

    assert_eq!(
        body(&served, &log.to_string(), Some(&last)).await,
        (200, told.to_owned()),
        "nothing is there"
    );
    batches(&db, log, (6, 9)).await;
    layer.events().finish(log, &[NewEvent::new("n", "10")]).await.expect("finished");
    assert_eq!(
        body(&served, &log.to_string(), Some(&last)).await,
        (200, told.to_owned()),
        "others are there"
    );
    let (status, text) = body(&served, &log.to_string(), Some(&format!("5-{}", old[4]))).await;
    assert_eq!((status, text.matches("\nevent: n\n").count()), (200, 5), "{text}");
    let (status, text) = body(&served, &log.to_string(), Some("0")).await;
    assert_eq!((status, text.matches("\nevent: n\n").count()), (200, 10), "{text}");
}

#[db_testkit::test]
async fn a_live_client_gets_rewound_or_removed(db: TestDb) {
    let layer = open(&db).await;
    let served = served(&layer).await;
    for (rewinds, end) in [
        (true, "id: 5\nevent: stream-end\ndata: rewound\n\n"),
        (false, "event: stream-end\ndata: removed\n\n"),
    ] {
        let log = log_of(&db, &layer, 10).await;
        let answer = client().get(format!("{}/{log}", served.address)).send().await.expect("an answer");
        let mut chunks = answer.bytes_stream();
        let mut text = String::new();
        let mut next = async |text: &mut String| {
            let chunk = timeout(PATIENCE, chunks.next()).await.expect("in time");
            let chunk = chunk.map(|chunk| chunk.expect("no error"));
            *text += std::str::from_utf8(chunk.as_deref().unwrap_or_default()).expect("text");
            chunk.is_some()
        };
        while !text.contains("data: 10\n\n") {
            assert!(next(&mut text).await, "{text}");
        }

        if rewinds {
            lose_after(&db, log, 5).await;
            batches(&db, log, (6, 10)).await;
            layer.events().append(log, &[NewEvent::new("n", "11")]).await.expect("appended");
        } else {
            layer.events().remove(log).await.expect("removed");
        }

        while next(&mut text).await {}
        assert!(text.ends_with(end), "{text}");
        assert_eq!(text.matches("event: n\n").count(), 10, "{text}");
    }
}

#[db_testkit::test]
async fn an_event_of_the_streams_own_type_that_is_stored_all_the_same_does_not_pass_for_the_end(db: TestDb) {
    let layer = open(&db).await;
    let served = served(&layer).await;
    let log = layer.events().create().await.expect("a log");
    sqlx::query("insert into event_log_batches values ($1, 1, 3, 9, '{stream-end,error,open}', '{finished,2,3}', true)")
        .bind(log.0)
        .execute(&db.pool())
        .await
        .expect("stored");

    let (_, text) = body(&served, &log.to_string(), None).await;

    let mark = marks(&layer, log).await[0];
    let all = format!(
        "retry: 1000\n\nid: 1-{mark}\ndata: finished\n\nid: 2-{mark}\ndata: 2\n\nid: 3-{mark}\ndata: 3\n\n\
         event: stream-end\ndata: finished\n\n"
    );
    assert_eq!(text, all);
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

    let marks = marks(&layer, log).await;
    assert_eq!(status, 200);
    assert_eq!(
        text,
        format!(
            "retry: 1000\n\n\
             id: 1-{}\nevent: line\ndata: {{\"text\":\"<script>\"}}\n\n\
             id: 2-{}\nevent: line\ndata: a\ndata: b\ndata: c\ndata: d\ndata: \n\n\
             id: 3-{}\nevent: end\ndata: {{}}\n\n\
             event: stream-end\ndata: finished\n\n",
            marks[0], marks[1], marks[2]
        )
    );
    assert!(marks[0] == marks[1] && marks[1] != marks[2], "two batches: {marks:?}");
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
            .map(|id| id.split_once('-').expect("a number and a mark").0.parse().expect("an id"))
            .collect();
        (status, ids)
    };

    assert_eq!(ids(format!("{log}"), None).await, (200, vec![1, 2, 3]));
    assert_eq!(ids(format!("{log}"), Some("1")).await, (200, vec![2, 3]));
    assert_eq!(ids(format!("{log}?from=2"), None).await, (200, vec![3]));
    assert_eq!(ids(format!("{log}?from=0"), Some("2")).await, (200, vec![3]), "the header is newer");
    // 204 makes an EventSource stop.
    assert_eq!(ids(format!("{log}"), Some("3")).await, (204, vec![]));
    let mark = marks(&layer, log).await[0];
    assert_eq!(ids(format!("{log}"), Some(&format!("2-{mark}"))).await, (200, vec![3]));
    assert_eq!(ids(format!("{log}?from=1-{mark}"), None).await, (200, vec![2, 3]));
    assert_eq!(ids(format!("{log}"), Some(&format!("3-{mark}"))).await, (204, vec![]));
    let bad = [
        "x",
        "-1",
        "1-",
        "-k3f9",
        "1-K3F9",
        "1-k3f9-1",
        "1-\u{e9}",
        "+1",
        "1.0",
        "1-zzzzzzzz",
        "9223372036854775808",
    ];
    for bad in bad {
        assert_eq!(ids(format!("{log}?from={bad}"), None).await.0, 400, "{bad}");
        if bad.is_ascii() {
            assert_eq!(ids(format!("{log}"), Some(bad)).await.0, 400, "{bad}");
        }
    }
    assert_eq!(ids("999999".to_owned(), None).await.0, 404);
    layer.events().remove(log).await.expect("removed");
    assert_eq!(ids(format!("{log}"), None).await.0, 410);
}

/// The ids in an answer: those of events, and that of the last message.
fn ids(text: &str) -> (Vec<&str>, Option<&str>) {
    let mut messages: Vec<&str> = text.split_terminator("\n\n").collect();
    let end = messages.pop().filter(|end| end.contains("event: stream-end")).expect("an end");
    (messages.iter().filter_map(|message| line(message, "id: ")).collect(), line(end, "id: "))
}

fn line<'m>(message: &'m str, name: &str) -> Option<&'m str> {
    message.lines().find_map(|line| line.strip_prefix(name))
}

#[db_testkit::test]
async fn a_client_selects_kinds_and_the_last_events(db: TestDb) {
    let layer = open(&db).await;
    let served = served(&layer).await;
    let log = layer.events().create().await.expect("a log");
    let event = |kind: &'static str| NewEvent::new(kind, "");
    layer.events().append(log, &[event("line"), event("error, kind of")]).await.expect("appended");
    layer.events().finish(log, &[event("line"), event("warning"), event("line")]).await.expect("finished");
    let marks = marks(&layer, log).await;
    let id = |id: usize| format!("{id}-{}", marks[id - 1]);

    for (query, header, seen, end) in [
        ("kinds=line", None, vec![1, 3, 5], None),
        ("kinds=warning", None, vec![4], Some(5)),
        ("kinds=warning,line", None, vec![1, 3, 4, 5], None),
        ("kinds=nothing", None, vec![], Some(5)),
        ("last=2", None, vec![4, 5], None),
        ("last=100", None, vec![1, 2, 3, 4, 5], None),
        ("last=3&kinds=warning", None, vec![4], Some(5)),
        ("kinds=line&from=1", None, vec![3, 5], None),
        // A browser that reconnects repeats the address.
        ("last=1", Some("2"), vec![3, 4, 5], None),
        ("last=1&kinds=warning", Some("3"), vec![4], Some(5)),
    ] {
        let (status, text) = body(&served, &format!("{log}?{query}"), header).await;

        let (events, last) = ids(&text);
        assert_eq!(status, 200, "{query}");
        assert_eq!(events, seen.iter().map(|n| id(*n)).collect::<Vec<_>>(), "{query} {header:?}: {text}");
        assert_eq!(last, end.map(id).as_deref(), "{query} {header:?}: {text}");
    }
    // A browser resumes with the id of the end, gets 204, and stops.
    assert_eq!(body(&served, &format!("{log}?kinds=warning"), Some(&id(5))).await.0, 204);
    assert_eq!(body(&served, &format!("{log}?last=0"), None).await.0, 204);
}

#[db_testkit::test]
async fn selections_that_make_no_sense_are_refused(db: TestDb) {
    let layer = open(&db).await;
    let served = served(&layer).await;
    let log = log_of(&db, &layer, 3).await;
    let too_long = format!("kinds={}", "x".repeat(65));
    let too_many = format!("kinds={}", vec!["x"; 33].join(","));

    for query in [
        "last=",
        "last=-1",
        "last=%2B1",
        "last=1.0",
        "last=x",
        "last=4294967296",
        "last=1&last=2",
        "from=1&last=1",
        "from=1&from=2",
        "kinds=",
        "kinds=a,",
        "kinds=,a",
        "kinds=a,,b",
        "kinds=a%0Ab",
        "kinds=a%00",
        "kinds=a&kinds=b",
        &too_long,
        &too_many,
    ] {
        for header in [None, Some("2")] {
            let (status, text) = body(&served, &format!("{log}?{query}"), header).await;
            assert_eq!(status, 400, "{query}: {text}");
            assert!(text.contains("must be") || text.contains("exclude each other"), "{query}: {text}");
        }
    }
}

#[db_testkit::test]
async fn a_client_below_the_first_event_of_a_trimmed_log_gets_removed_and_resumes_there(db: TestDb) {
    let layer = open(&db).await;
    let served = served(&layer).await;
    let log = log_of(&db, &layer, 10).await;
    layer.events().finish(log, &[NewEvent::new("n", "11")]).await.expect("finished");
    layer.events().trim(log, &Trim::keep_last(4)).await.expect("trimmed");
    let told = "retry: 1000\n\nid: 7\nevent: stream-end\ndata: removed\n\n";

    for last in [None, Some("3"), Some("6")] {
        assert_eq!(body(&served, &log.to_string(), last).await, (200, told.to_owned()), "{last:?}");
    }
    let (_, text) = body(&served, &log.to_string(), Some("7")).await;
    assert_eq!(ids(&text).0.len(), 4, "{text}");
    let (_, text) = body(&served, &format!("{log}?last=100"), None).await;
    assert_eq!(ids(&text).0.len(), 4, "{text}");
}

#[db_testkit::test]
async fn a_client_is_sent_the_ids_of_events_that_it_has_not_selected(db: TestDb) {
    let layer = open(&db).await;
    let log = layer.events().create().await.expect("a log");
    let selection = sse::Selection::last(0).kinds(["rare"]);
    let answer = sse::events(&layer, log, selection).await.expect("an answer");
    let mut chunks = answer.into_body().into_data_stream();
    let mut next = async || {
        let chunk =
            timeout(2 * PATIENCE, chunks.next()).await.expect("in time").expect("more").expect("no error");
        String::from_utf8(chunk.to_vec()).expect("text")
    };
    assert_eq!(next().await, "retry: 1000\n\n");

    layer
        .events()
        .append(log, &[NewEvent::new("line", ""), NewEvent::new("line", "")])
        .await
        .expect("appended");

    let mark = marks(&layer, log).await[1];
    assert_eq!(next().await, format!("id: 2-{mark}\n\n"));
    layer.events().append(log, &[NewEvent::new("rare", "")]).await.expect("appended");
    assert!(next().await.ends_with("event: rare\ndata: \n\n"));
    layer.closing().cancel();
    assert_eq!(next().await, "retry: 200\nevent: stream-end\ndata: closing\n\n", "it has the id");
}

#[db_testkit::test]
async fn an_answer_that_ends_in_the_middle_of_an_event_does_not_end_the_event(db: TestDb) {
    let layer = open(&db).await;
    let log = layer.events().create().await.expect("a log");
    layer.events().append(log, &[NewEvent::new("line", "x".repeat(8 << 20))]).await.expect("appended");
    let answer = sse::events(&layer, log, Cursor::default()).await.expect("an answer");
    let mut chunks = answer.into_body().into_data_stream();
    let mut text = String::new();
    while text.len() < 64 << 10 {
        let chunk =
            timeout(PATIENCE, chunks.next()).await.expect("in time").expect("more").expect("no error");
        text += std::str::from_utf8(&chunk).expect("text");
    }

    layer.closing().cancel();

    let error = loop {
        match timeout(PATIENCE, chunks.next()).await.expect("in time").expect("more, or an error") {
            Ok(chunk) => text += std::str::from_utf8(&chunk).expect("text"),
            Err(error) => break error,
        }
    };
    assert!(text.ends_with('x') && !text.contains("stream-end"), "the client takes the event for whole");
    assert!(error.to_string().contains("not written"), "{error}");
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
        until(&format!("\nevent: n\ndata: {n}\n\n")).await;
    }
    // The first step of a shutdown; pools and bus are still open.
    layer.closing().cancel();

    until("retry: 200\nevent: stream-end\ndata: closing\n\n").await;
    assert!(timeout(PATIENCE, chunks.next()).await.expect("in time").is_none(), "the answer has ended");
}

/// `curl`, with its output line by line. It is killed when this value is dropped.
struct Curl {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Curl {
    fn get(address: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new("curl");
        command.args(["--no-buffer", "--silent", "--show-error"]).args(arguments).arg(address);
        command.env("NO_PROXY", "127.0.0.1").stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("curl is on the PATH");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        Self { child, lines }
    }

    async fn line(&mut self) -> Option<String> {
        // Longer than an answer may be quiet without a comment.
        let line = timeout(2 * PATIENCE, self.lines.next_line()).await;
        line.expect("a line in time").expect("text")
    }

    async fn until(&mut self, wanted: &str) {
        while self.line().await.expect("more") != wanted {}
    }

    async fn rest(mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(line) = self.line().await {
            lines.push(line);
        }
        assert!(self.child.wait().await.expect("its end").success(), "curl has seen the end of the answer");
        lines
    }
}

#[db_testkit::test]
async fn curl_follows_a_log_hears_that_it_is_quiet_sees_its_end_and_resumes(db: TestDb) {
    let layer = open(&db).await;
    let served = served(&layer).await;
    let log = layer.events().create().await.expect("a log");
    layer.events().append(log, &[NewEvent::new("n", "1"), NewEvent::new("n", "2")]).await.expect("appended");
    let address = format!("{}/{log}", served.address);

    let mut curl = Curl::get(&address, &[]);
    curl.until("data: 2").await;
    curl.until(":").await;
    layer.events().finish(log, &[NewEvent::new("n", "3")]).await.expect("finished");

    let third = format!("id: 3-{}", marks(&layer, log).await[2]);
    curl.until(&third).await;
    assert_eq!(curl.rest().await, ["event: n", "data: 3", "", "event: stream-end", "data: finished", ""]);
    let resumed = Curl::get(&address, &["--header", "Last-Event-ID: 2"]).rest().await;
    let whole =
        ["retry: 1000", "", &third, "event: n", "data: 3", "", "event: stream-end", "data: finished", ""];
    assert_eq!(resumed, whole);
    let status =
        Curl::get(&address, &["--header", "Last-Event-ID: 3", "--write-out", "%{http_code}"]).rest().await;
    assert_eq!(status, ["204"]);
}

#[db_testkit::test]
async fn for_a_client_that_does_not_read_no_more_is_read_than_its_socket_takes(db: TestDb) {
    let layer = open(&db).await;
    let served = served(&layer).await;
    let log = layer.events().create().await.expect("a log");
    let megabyte: Vec<NewEvent> = (0..16).map(|_| NewEvent::new("line", "x".repeat(1 << 16))).collect();
    for _ in 0..MEGABYTES {
        layer.events().append(log, &megabyte).await.expect("appended");
    }
    layer.events().finish(log, &[NewEvent::new("end", "")]).await.expect("finished");
    let host = served.address.strip_prefix("http://").expect("an address");
    let ask = async || {
        let mut socket = TcpStream::connect(host).await.expect("connected");
        let request = format!("GET /{log} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.expect("asked");
        socket
    };
    let all = async |mut socket: TcpStream| {
        let mut answer = Vec::new();
        timeout(2 * PATIENCE, socket.read_to_end(&mut answer)).await.expect("in time").expect("read");
        answer.len()
    };

    // A client that reads gets everything, while another one does not read.
    let mut idle = ask().await;
    let mut first = [0];
    idle.read_exact(&mut first).await.expect("it is answered");
    let before = layer.events().state().pages;
    let length = all(ask().await).await;
    let pages = layer.events().state().pages - before;

    assert!(length > MEGABYTES << 20, "{length} bytes");
    let megabytes = u64::try_from(MEGABYTES).expect("a small number");
    assert!(pages < megabytes * 3 / 2, "{pages} pages, of which one who reads needs {megabytes}");
    assert_eq!(first.len() + all(idle).await, length, "nothing is lost for whoever comes later");
}

#[db_testkit::test]
async fn a_page_that_is_slower_than_the_heartbeat_is_asked_for_once_and_arrives(db: TestDb) {
    let layer = open(&db).await;
    let log = layer.events().create().await.expect("a log");
    layer.events().finish(log, &[NewEvent::new("n", "1")]).await.expect("finished");
    let answer = sse::events(&layer, log, Cursor::default()).await.expect("an answer");
    let mut blocker = db.pool().begin().await.expect("begun");
    sqlx::query("lock table event_log_batches").execute(&mut *blocker).await.expect("locked");
    let mut chunks = answer.into_body().into_data_stream();
    let mut next = async || {
        let chunk =
            timeout(PATIENCE, chunks.next()).await.expect("in time").expect("more").expect("no error");
        String::from_utf8(chunk.to_vec()).expect("text")
    };

    assert_eq!(next().await, "retry: 1000\n\n");
    assert_eq!(next().await, ":\n\n");
    blocker.rollback().await.expect("released");

    let event = next().await;
    assert!(event.ends_with("\nevent: n\ndata: 1\n\n"), "{event:?}");
    assert_eq!(layer.events().state().pages, 1);
}

/// Serves a log as a service does, until `closing` is cancelled.
async fn serve_until_closing(layer: &Db) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    let routes = Router::new().route("/{log}", get(events)).with_state(layer.clone());
    let closing = layer.closing();
    let server =
        axum::serve(listener, routes).with_graceful_shutdown(async move { closing.cancelled().await });
    (address, tokio::spawn(async move { server.await.expect("serves") }))
}

/// Requests a log, and reads only the first byte.
async fn stall(address: SocketAddr, log: LogId) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.expect("connected");
    let request = format!("GET /{log} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    socket.write_all(request.as_bytes()).await.expect("asked");
    socket.read_exact(&mut [0]).await.expect("it is answered");
    socket
}

#[db_testkit::test]
async fn clients_that_do_not_read_do_not_hold_up_a_shutdown(db: TestDb) {
    let layer = open(&db).await;
    let megabyte: Vec<NewEvent> = (0..16).map(|_| NewEvent::new("line", "x".repeat(1 << 16))).collect();
    let (finished, open) = (layer.events().create().await, layer.events().create().await);
    let (finished, open) = (finished.expect("a log"), open.expect("a log"));
    for _ in 0..MEGABYTES / 2 {
        layer.events().append(finished, &megabyte).await.expect("appended");
        layer.events().append(open, &megabyte).await.expect("appended");
    }
    layer.events().append(open, &[NewEvent::new("line", "x".repeat(15 << 20))]).await.expect("appended");
    layer.events().finish(finished, &[NewEvent::new("end", "")]).await.expect("finished");
    let (address, server) = serve_until_closing(&layer).await;
    let mut idle = Vec::new();
    for log in [finished, open, finished, open] {
        idle.push(stall(address, log).await);
    }
    // A client that reads and waits gets the last message.
    let (has_all, mut waits) = watch::channel(false);
    let mut reading = TcpStream::connect(address).await.expect("connected");
    let request = format!("GET /{open} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    reading.write_all(request.as_bytes()).await.expect("asked");
    let reading = tokio::spawn(async move {
        let (mut tail, mut all) = (Vec::new(), 0);
        let mut chunk = vec![0; 1 << 16];
        loop {
            let read = reading.read(&mut chunk).await.expect("read");
            if read == 0 {
                return String::from_utf8(tail).expect("text");
            }
            tail.extend_from_slice(&chunk[..read]);
            all += read;
            // The last complete event in the answer.
            has_all.send_replace(all > (MEGABYTES / 2 + 15) << 20 && tail.ends_with(b"\n\n\r\n"));
            tail.drain(..tail.len().saturating_sub(80));
        }
    });
    until("those that do not read are asked nothing more", async || {
        let before = layer.events().state().pages;
        tokio::time::sleep(Duration::from_millis(300)).await;
        layer.events().state().pages == before
    })
    .await;

    timeout(PATIENCE, waits.wait_for(|has_all| *has_all)).await.expect("in time").expect("it reads");

    layer.closing().cancel();

    timeout(PATIENCE, server).await.expect("the service has closed").expect("no panic");
    let tail = timeout(PATIENCE, reading).await.expect("in time").expect("no panic");
    assert!(tail.contains("retry: 200\nevent: stream-end\ndata: closing\n\n"), "{tail:?}");
    drop(idle);
}

#[db_testkit::test]
async fn a_client_that_reads_after_a_while_has_everything_once(db: TestDb) {
    let layer = open(&db).await;
    let log = layer.events().create().await.expect("a log");
    // Lines that end within pieces, events larger than a piece, batches larger than a page.
    let event = |n: usize| NewEvent::new("line", format!("{n}\r\n").repeat(n % 7 * 5000 + 1));
    for batch in 0..24 {
        let events: Vec<NewEvent> = (0..10).map(|n| event(batch * 10 + n)).collect();
        layer.events().append(log, &events).await.expect("appended");
    }
    layer.events().finish(log, &[NewEvent::new("end", "")]).await.expect("finished");
    let (address, _server) = serve_until_closing(&layer).await;
    let all = async |mut socket: TcpStream| {
        let mut answer = Vec::new();
        let mut chunk = vec![0; 1 << 16];
        while !answer.ends_with(b"\r\n0\r\n\r\n") {
            let read = timeout(PATIENCE, socket.read(&mut chunk)).await.expect("in time").expect("read");
            assert!(read > 0, "the answer was cut off");
            answer.extend_from_slice(&chunk[..read]);
        }
        unchunked(&answer)
    };
    let slow = stall(address, log).await;
    let whole = all(stall(address, log).await).await;
    // Longer than the time after which an answer drops its page.
    tokio::time::sleep(Duration::from_millis(1500)).await;

    assert!(all(slow).await == whole, "something is missing, or there twice");

    assert!(whole.len() > 16 << 20, "{} bytes", whole.len());
}

/// The text of an answer in chunks, of which the first byte of the head was read.
fn unchunked(answer: &[u8]) -> String {
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let (mut rest, mut all) = (&answer[head + 4..], Vec::new());
    loop {
        let line = rest.windows(2).position(|two| two == b"\r\n").expect("a chunk's size");
        let size = std::str::from_utf8(&rest[..line]).expect("text");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            return String::from_utf8(all).expect("text");
        }
        all.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 2 + size + 2..];
    }
}
