//! `serve`: pages and API.

use std::time::Duration;

use db_testkit::TestDb;
use reqwest::{Client, StatusCode};
use serde_json::Value;

use crate::support::{Home, Live, PATIENCE};

pub(crate) fn client() -> Client {
    Client::builder().timeout(PATIENCE).no_proxy().build().expect("a client")
}

/// A running `serve`.
pub(crate) struct Served {
    pub(crate) live: Live,
    pub(crate) address: String,
    pub(crate) token: Option<String>,
}

pub(crate) fn serve(home: &Home, args: &[&str]) -> Served {
    serve_on(home, "127.0.0.1:0", args)
}

pub(crate) fn serve_on(home: &Home, address: &str, args: &[&str]) -> Served {
    serve_by(home.buildwatch([&["serve", "--json", "--listen", address], args].concat()))
}

/// Starts `command`, which prints its address as JSON.
pub(crate) fn serve_by(command: std::process::Command) -> Served {
    let live = Live::new(command);
    let said: Value = serde_json::from_str(&live.line()).expect("JSON");
    let address = said["address"].as_str().expect("an address").to_owned();
    let token = said["token"].as_str().map(str::to_owned);
    Served { live, address, token }
}

impl Served {
    pub(crate) async fn get(&self, path: &str) -> (StatusCode, String) {
        let answer = client().get(format!("{}{path}", self.address)).send().await.expect("an answer");
        (answer.status(), answer.text().await.expect("text"))
    }

    pub(crate) async fn json(&self, path: &str) -> Value {
        let (status, text) = self.get(path).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }
}

/// The events, with their ids cut to numbers.
fn without_marks(events: &str) -> String {
    events
        .split_inclusive('\n')
        .map(|line| match line.strip_prefix("id: ").and_then(|id| id.split_once('-')) {
            Some((id, _)) => format!("id: {id}\n"),
            None => line.to_owned(),
        })
        .collect()
}

#[db_testkit::test]
async fn builds_and_their_events_are_served(db: TestDb) {
    let home = Home::on(&db);
    home.run("echo '<script>alert(1)</script>'; echo err >&2; exit 3");
    let served = serve(&home, &[]);

    let list = served.json("/api/builds").await;
    assert_eq!(list.as_array().expect("a list").len(), 1);
    let build = served.json("/api/builds/1").await;
    assert_eq!(build, list[0]);
    assert_eq!((build["status"].as_str(), build["exit_code"].as_i64()), (Some("failed"), Some(3)));

    let (status, events) = served.get("/api/builds/1/events").await;
    assert_eq!(status, 200);
    assert!(events.contains("event: stdout\ndata: {\"text\":\"<script>alert(1)</script>\"}\n\n"), "{events}");
    assert!(
        without_marks(&events).ends_with(
            "id: 3\nevent: end\ndata: {\"status\":\"failed\",\"exit_code\":3}\n\n\
             event: stream-end\ndata: finished\n\n"
        ),
        "{events}"
    );

    for asset in
        ["/", "/builds/1", "/assets/style.css", "/assets/build.js", "/assets/index.js", "/assets/icon.svg"]
    {
        let (status, text) = served.get(asset).await;
        assert_eq!(status, 200, "{asset}");
        // Except SVG's namespace, which is a name and not a place.
        let text = text.replace("http://www.w3.org/2000/svg", "");
        for elsewhere in ["http:", "https:", "=\"//", "url(", "@import"] {
            assert!(!text.contains(elsewhere), "{asset} has {elsewhere}");
        }
    }
    for path in ["/health/live", "/health/ready"] {
        assert_eq!(served.get(path).await.0, 200, "{path}");
    }
    for missing in
        ["/api/builds/99", "/api/builds/x", "/api/builds/99/events", "/builds/99", "/builds/x", "/nothing"]
    {
        assert_eq!(served.get(missing).await.0, 404, "{missing}");
    }
}

#[db_testkit::test]
async fn metrics_are_served_to_prometheus(db: TestDb) {
    let home = Home::on(&db);
    home.run("echo a line");
    let served = serve(&home, &[]);
    served.get("/api/builds/1/events").await;

    let answer = client().get(format!("{}/metrics", served.address)).send().await.expect("an answer");

    assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let text = answer.text().await.expect("text");
    for line in [
        "db_client_connection_max{db_client_connection_pool_name=\"api\"} 10",
        "db_layer_bus_connected{namespace=\"buildwatch\"} 1",
        "db_layer_migration_pending{namespace=\"buildwatch\"} 0",
        "db_layer_ready{namespace=\"buildwatch\"} 1",
    ] {
        assert!(text.lines().any(|it| it == line), "{line} is missing: {text}");
    }
    let counted = |name: &str| text.lines().any(|line| line.starts_with(name) && !line.ends_with(" 0"));
    assert!(counted("db_client_operation_duration_seconds_count{"), "{text}");
    assert!(counted("db_layer_events_pages_total{"), "{text}");
    assert!(!text.contains("select") && !text.contains("a line"), "{text}");
}

#[db_testkit::test]
async fn monitoring_takes_the_token_and_is_for_this_machine_where_there_is_none(db: TestDb) {
    let home = Home::on(&db);
    home.run("echo a line");
    let (plain, starts) = (serve(&home, &[]), serve(&home, &["--allow-start"]));
    let token = starts.token.clone().expect("a token");
    let ask = async |address: &str, token: Option<&str>, forwarded: bool| {
        let request = client().get(format!("{address}/monitoring/statements"));
        let request = match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let request = if forwarded { request.header("x-forwarded-for", "10.0.0.1") } else { request };
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a text"))
    };

    let (status, text) = ask(&plain.address, None, false).await;
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("crates/buildwatch/src/") && text.contains("select"), "{text}");
    assert_eq!(ask(&plain.address, None, true).await.0, 403);
    assert_eq!(ask(&starts.address, Some(&token), true).await.0, 200);
    assert_eq!(ask(&starts.address, Some("0"), false).await.0, 401);
    assert_eq!(ask(&starts.address, None, false).await.0, 401);
    assert_eq!(starts.get("/api/builds/1").await.0, 200, "while reading builds takes no token here");
}

#[db_testkit::test]
async fn an_error_has_a_type_for_programs_and_the_requests_id(db: TestDb) {
    let served = serve(&Home::on(&db), &[]);
    let ask = async |accept: &str| {
        let request = client().get(format!("{}/nothing", served.address)).header("accept", accept);
        let answer = request.header("x-request-id", "r-17").send().await.expect("an answer");
        assert_eq!(answer.headers()["x-request-id"], "r-17");
        answer.text().await.expect("a text")
    };

    let problem: Value = serde_json::from_str(&ask("application/json").await).expect("JSON");
    assert_eq!((&problem["type"], &problem["status"]), (&"urn:db-axum:no-such-address".into(), &404.into()));
    assert_eq!(problem["instance"], "urn:db-axum:request:r-17");
    assert!(ask("text/html").await.starts_with("<!doctype html>"), "a page stays a page");
}

#[db_testkit::test]
async fn pages_allow_no_script_but_their_own(db: TestDb) {
    let served = serve(&Home::on(&db), &[]);

    let answer = client().get(&served.address).send().await.expect("an answer");

    let policy = answer.headers()["content-security-policy"].to_str().expect("text");
    assert_eq!(
        policy,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
}

#[db_testkit::test]
async fn builds_are_started_over_http_only_when_that_is_allowed(db: TestDb) {
    let home = Home::on(&db);
    let closed = serve(&home, &[]);
    let post = async |served: &Served, headers: &[(&str, &str)], body: &str| {
        let mut request = client().post(format!("{}/api/builds", served.address)).body(body.to_owned());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    };
    let json = ("content-type", "application/json");
    let echo = r#"{"command": ["echo", "hello"]}"#;
    assert_eq!(post(&closed, &[json], echo).await.0, 403);

    let open = serve(&home, &["--allow-start"]);
    let bearer = format!("Bearer {}", open.token.as_deref().expect("a token"));
    let token = ("authorization", bearer.as_str());
    let host = open.address.trim_start_matches("http://").to_owned();
    let own = open.address.clone();
    for (status, headers) in [
        (401, vec![json]),
        (401, vec![json, ("authorization", "Bearer 00000000000000000000000000000000")]),
        (403, vec![json, token, ("origin", "http://evil.example")]),
        (403, vec![json, token, ("origin", "null")]),
        (421, vec![json, token, ("host", "evil.example")]),
        (421, vec![json, token, ("host", "evil.example"), ("origin", "http://evil.example")]),
        (415, vec![token, ("content-type", "text/plain")]),
    ] {
        assert_eq!(post(&open, &headers, echo).await.0, status, "{headers:?}");
    }
    for (status, body) in [
        (400, "not JSON"),
        (422, r#"{"command": "echo hello"}"#),
        (422, r#"{"command": []}"#),
        (422, r#"{"command": [""]}"#),
        (422, r#"{"command": ["echo", "a\u0000b"]}"#),
        (422, "{}"),
    ] {
        let (answered, text) = post(&open, &[json, token], body).await;
        assert_eq!(answered, status, "{body}: {text}");
    }
    assert_eq!(open.json("/api/builds").await, Value::Array(Vec::new()), "none of these started anything");

    let (status, text) = post(&open, &[json, token, ("origin", &own), ("host", &host)], echo).await;
    assert_eq!(status, 201, "{text}");
    let id = serde_json::from_str::<Value>(&text).expect("JSON")["id"].clone();
    let (_, events) = open.get(&format!("/api/builds/{id}/events")).await;
    assert!(events.contains(r#"data: {"text":"hello"}"#), "{events}");

    // Reading is refused, too, under a name that another site pointed here.
    let rebound = client().get(format!("{own}/api/builds")).header("host", "evil.example").send().await;
    assert_eq!(rebound.expect("an answer").status(), 421);
}

#[test]
fn starting_builds_from_other_machines_takes_a_flag_of_its_own() {
    let home = Home::embedded();

    let output = home.output(["serve", "--listen", "0.0.0.0:0", "--allow-start"]);

    assert_eq!(output.status.code(), Some(1));
    let text = crate::support::err(&output);
    assert!(text.contains("--allow-start-from-anywhere"), "{text}");
}

#[db_testkit::test]
async fn an_address_in_use_is_one_line(db: TestDb) {
    let home = Home::on(&db);
    let first = serve(&home, &[]);
    let taken = first.address.trim_start_matches("http://");

    let output = home.output(["serve", "--listen", taken]);

    let text = crate::support::err(&output);
    assert!(
        text.starts_with(&format!("buildwatch: cannot listen on {taken}")) && text.lines().count() == 1,
        "{text}"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[db_testkit::test]
async fn an_interrupted_serve_ends_its_streams_and_its_builds_and_exits_cleanly(db: TestDb) {
    let home = Home::on(&db);
    let mut served = serve(&home, &["--allow-start"]);
    let token = served.token.clone().expect("a token");
    let started = client()
        .post(format!("{}/api/builds", served.address))
        .bearer_auth(token)
        .json(&serde_json::json!({ "command": ["sleep", "300"] }))
        .send()
        .await
        .expect("an answer");
    assert_eq!(started.status(), 201);
    let mut stream =
        client().get(format!("{}/api/builds/1/events", served.address)).send().await.expect("an answer");
    assert!(stream.chunk().await.expect("no error").is_some(), "the stream is open");

    served.live.signal("INT");

    let rest = tokio::time::timeout(Duration::from_secs(20), async {
        while let Ok(Some(_)) = stream.chunk().await {}
    });
    assert!(rest.await.is_ok(), "the stream has an end");
    assert_eq!(served.live.ended().code(), Some(0), "{:?}", served.live.errors());
    assert_eq!(home.json(["list", "--json"])[0]["status"], "aborted");
}

#[db_testkit::test]
async fn a_serve_that_is_interrupted_twice_leaves_no_command_running(db: TestDb) {
    let home = Home::on(&db);
    let mut served = serve(&home, &["--allow-start"]);
    let (marker, ready) = (home.path("marker"), home.path("ready"));
    let script = format!(
        "trap '' INT TERM; touch {}; while :; do sleep 0.1; done; : {}",
        ready.display(),
        marker.display()
    );
    let started = client()
        .post(format!("{}/api/builds", served.address))
        .bearer_auth(served.token.clone().expect("a token"))
        .json(&serde_json::json!({ "command": ["sh", "-c", script] }))
        .send()
        .await
        .expect("an answer");
    assert_eq!(started.status(), 201);
    crate::support::until("the command is ready", || ready.exists());

    served.live.signal("INT");
    assert_eq!(served.live.line_within(Duration::from_millis(300)), None, "it waits for the command");
    served.live.signal("INT");

    assert_eq!(served.live.ended().code(), Some(130));
    assert_eq!(home.json(["list", "--json"])[0]["status"], "aborted");
    crate::support::until("the command is gone", || crate::support::processes(&marker).is_empty());
}

#[test]
fn starting_builds_from_other_machines_is_allowed_by_a_flag_of_its_own() {
    let home = Home::embedded();
    let open = home.start([
        "serve",
        "--json",
        "--listen",
        "0.0.0.0:0",
        "--allow-start",
        "--allow-start-from-anywhere",
    ]);

    assert!(open.line().contains("\"token\":\""));
}

#[db_testkit::test]
async fn a_restarted_server_resumes_where_a_client_stopped(db: TestDb) {
    let home = Home::on(&db);
    let gate = home.fifo("gate");
    let script = format!("echo one; echo two; read word < {}; echo $word", gate.display());
    let mut run = home.start(["run", "--", "sh", "-c", &script]);
    assert_eq!((run.line(), run.line()), ("one".to_owned(), "two".to_owned()));
    let mut first = serve(&home, &[]);
    let mut stream =
        client().get(format!("{}/api/builds/1/events", first.address)).send().await.expect("an answer");
    let mut seen = String::new();
    while !without_marks(&seen).contains("id: 2\n") {
        seen += std::str::from_utf8(&stream.chunk().await.expect("no error").expect("more")).expect("text");
    }
    first.live.kill();

    let second = serve(&home, &[]);
    std::fs::write(&gate, "three\n").expect("written");
    let rest = client()
        .get(format!("{}/api/builds/1/events", second.address))
        .header("Last-Event-ID", "2")
        .send()
        .await;
    let rest = rest.expect("an answer").text().await.expect("text");

    assert!(
        without_marks(&rest).starts_with(
            "retry: 1000\n\nid: 3\nevent: stdout\ndata: {\"text\":\"three\"}\n\nid: 4\nevent: end\n"
        ),
        "{rest}"
    );
    assert!(run.ended().success());
}
