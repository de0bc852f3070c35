//! Event logs as server-sent events.

use std::process::Stdio;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use db_axum::sse::{self, Cursor};
use db_layer::{Db, LogId, NewEvent};
use db_testkit::TestDb;
use futures_util::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::support::{PATIENCE, Served, client, open, serve};

/// More than sockets take: far more than the kernel's largest buffers of both sides.
const MEGABYTES: usize = 32;

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

/// `curl` as somebody would call it, with what it prints, line by line. It is killed when this is dropped.
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
        // Longer than a log may be quiet without a comment.
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

    curl.until("id: 3").await;
    assert_eq!(curl.rest().await, ["event: n", "data: 3", "", "event: stream-end", "data: finished", ""]);
    let resumed = Curl::get(&address, &["--header", "Last-Event-ID: 2"]).rest().await;
    let whole =
        ["retry: 1000", "", "id: 3", "event: n", "data: 3", "", "event: stream-end", "data: finished", ""];
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

    // Whoever reads has everything, while a neighbour only looks on.
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
