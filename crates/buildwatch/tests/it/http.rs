//! `serve` with requests of all kinds, correct and wrong.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use db_testkit::TestDb;
use reqwest::StatusCode;
use serde_json::Value;

use crate::serving::{Served, client, serve, serve_by, serve_on};
use crate::support::{Frozen, Home, PATIENCE, err};

impl Served {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address.trim_start_matches("http://")).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream
    }

    /// Sends bytes unchanged, and reads until the server closes.
    fn raw(&self, bytes: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes.as_bytes()).expect("written");
        read_all(&mut stream)
    }

    fn status_of(&self, bytes: &str) -> u16 {
        let answer = self.raw(bytes);
        answer
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("{answer:?}"))
    }
}

/// Everything that arrives until the other side closes or resets.
fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&bytes)),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[db_testkit::test]
async fn a_request_has_one_host_that_is_ours(db: TestDb) {
    let served = serve(&Home::on(&db), &[]);
    for (head, status) in [
        ("GET /api/builds HTTP/1.1\r\nHost: localhost\r\n", 200),
        ("GET /api/builds HTTP/1.1\r\nHost: localhost.:8080\r\n", 200),
        ("GET /api/builds HTTP/1.1\r\nHost: [::1]:8080\r\n", 200),
        ("GET /api/builds HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        ("GET /api/builds HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", 400),
        ("GET /api/builds HTTP/1.1\r\nHost: localhost:abc\r\n", 400),
        ("GET /api/builds HTTP/1.1\r\nHost: localhost:99999\r\n", 400),
        ("GET /api/builds HTTP/1.1\r\nHost: user@localhost\r\n", 400),
        ("GET /api/builds HTTP/1.1\r\nHost:\r\n", 400),
        ("GET /api/builds HTTP/1.1\r\n", 400),
        ("GET /api/builds HTTP/1.0\r\n", 200),
        ("GET /api/builds HTTP/1.0\r\nHost: evil.example\r\n", 421),
        ("GET http://evil.example/api/builds HTTP/1.1\r\nHost: localhost\r\n", 421),
        ("GET http://localhost/api/builds HTTP/1.1\r\nHost: localhost\r\n", 200),
        ("GET ftp://localhost/api/builds HTTP/1.1\r\nHost: localhost\r\n", 400),
        ("CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n", 421),
        ("CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n", 404),
    ] {
        assert_eq!(served.status_of(&format!("{head}Connection: close\r\n\r\n")), status, "{head}");
    }
}

#[db_testkit::test]
async fn credentials_are_read_as_http_has_them(db: TestDb) {
    let served = serve(&Home::on(&db), &["--allow-start"]);
    let token = served.token.clone().expect("a token");
    let own = served.address.clone();
    let post = |more: &str| {
        let body = r#"{"command": ["true"]}"#;
        let length = body.len();
        served.raw(&format!(
            "POST /api/builds HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             Connection: close\r\n{more}\r\n{body}",
            own.trim_start_matches("http://")
        ))
    };
    for (more, status) in [
        (format!("Authorization: bearer {token}\r\n"), 201),
        (format!("Authorization: BEARER   {token}\r\n"), 201),
        (format!("Authorization: Bearer {token}\r\nOrigin: {own}\r\n"), 201),
        (format!("Authorization: Bearer {token}\r\nAuthorization: Bearer x\r\n"), 400),
        (format!("Authorization: Bearer {token}\r\nOrigin: {own}\r\nOrigin: http://evil.example\r\n"), 400),
        (format!("Authorization: Bearer {token}\r\nOrigin: ftp{}\r\n", own.trim_start_matches("http")), 403),
        (format!("Authorization: Token {token}\r\n"), 401),
        (String::new(), 401),
    ] {
        let answer = post(&more);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{more}: {answer}");
        let lower = answer.to_ascii_lowercase();
        assert_eq!(
            lower.contains("www-authenticate: bearer realm=\"buildwatch\""),
            status == 401,
            "{answer}"
        );
        assert_eq!(lower.contains("invalid_token"), status == 401 && !more.is_empty(), "{answer}");
    }
}

#[test]
fn a_host_that_no_browser_says_is_refused_at_the_start() {
    for bad in ["http://builds.example", "builds.example:8080", "b\u{fc}ilds.example", ""] {
        let output = Home::embedded().output(["serve", "--host", bad]);
        assert_eq!(output.status.code(), Some(2), "{bad}");
        assert!(err(&output).contains("not a host name"), "{}", err(&output));
    }
}

#[db_testkit::test]
async fn off_loopback_reading_takes_the_token_or_a_flag(db: TestDb) {
    let home = Home::on(&db);
    assert!(home.run("echo hunter2").status.success());
    let addresses: &[(&str, &[&str])] = &[
        ("0.0.0.0:0", &[]),
        ("[::]:0", &[]),
        ("0.0.0.0:0", &["--allow-start", "--allow-start-from-anywhere"]),
        // With a name, other machines reach the server through a proxy on this one.
        ("127.0.0.1:0", &["--host", "builds.example"]),
    ];
    for (address, args) in addresses {
        let served = serve_on(&home, address, args);
        let guarded = [
            "/api/builds",
            "/api/builds/1",
            "/api/builds/1/events",
            "/api/builds/99",
            "/metrics",
            "/monitoring/holders",
        ];
        for path in guarded {
            let (status, text) = served.get(path).await;
            assert_eq!(status, 401, "{address} {path}");
            assert!(!text.contains("hunter2"), "{text}");
        }
        // Pages tell nothing of builds, not even whether one exists.
        for path in ["/", "/builds/1", "/builds/99", "/assets/build.js", "/health/live"] {
            assert_eq!(served.get(path).await.0, 200, "{address} {path}");
        }
        let token = served.token.clone().expect("a token");
        let read =
            client().get(format!("{}/api/builds/1/events", served.address)).bearer_auth(token).send().await;
        assert!(read.expect("an answer").text().await.expect("text").contains("hunter2"));
        let wrong = client().get(format!("{}/api/builds", served.address)).bearer_auth("0").send().await;
        assert_eq!(wrong.expect("an answer").status(), 401);
    }
    let open: &[(&str, &[&str])] = &[
        ("0.0.0.0:0", &["--public-read"]),
        ("127.0.0.1:0", &[]),
        ("[::1]:0", &[]),
        ("[::ffff:127.0.0.1]:0", &[]),
    ];
    for (address, args) in open {
        let served = serve_on(&home, address, args);
        assert_eq!(served.get("/api/builds/1").await.0, 200, "{address}");
        assert_eq!(served.token, None);
    }
}

#[test]
fn a_server_that_shows_builds_to_everybody_says_so() {
    let home = Home::embedded();
    let says = |args: &[&str]| {
        let mut live = home.start([&["serve", "--listen", "0.0.0.0:0"], args].concat());
        live.line();
        live.line();
        live.signal("INT");
        let rest = live.rest();
        assert!(live.ended().success());
        rest.join("\n")
    };

    assert!(says(&["--public-read"]).contains("Everyone who can reach this address can read all builds"));
    assert!(says(&[]).contains("Read builds at:"));
}

#[db_testkit::test]
async fn errors_are_pages_for_people_and_problems_for_programs(db: TestDb) {
    let home = Home::on(&db);
    let served = serve(&home, &["--allow-start"]);
    let token = served.token.clone().expect("a token");
    let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let large = format!(r#"{{"command": ["{}"]}}"#, "x".repeat(3 << 20));
    for (method, path, body, status) in [
        ("GET", "/nothing", "", 404),
        ("GET", "/api/nothing", "", 404),
        ("GET", "/builds/99", "", 404),
        ("GET", "/builds/%ff", "", 400),
        ("GET", "/api/builds/%ff", "", 400),
        ("GET", "/api/builds/1/events?from=x", "", 400),
        ("DELETE", "/api/builds", "", 405),
        ("PUT", "/", "", 405),
        ("POST", "/api/builds", "{", 400),
        ("POST", "/api/builds", "{}", 422),
        ("POST", "/api/builds", &large, 413),
    ] {
        for (accept, is_page) in [(Some(browser), true), (Some("application/json"), false), (None, false)] {
            let method = method.parse().expect("a method");
            let mut request = client().request(method, format!("{}{path}", served.address));
            request =
                request.bearer_auth(&token).header("content-type", "application/json").body(body.to_owned());
            if let Some(accept) = accept {
                request = request.header("accept", accept);
            }
            let answer = request.send().await.expect("an answer");
            assert_eq!(answer.status().as_u16(), status, "{path}");
            let headers = answer.headers().clone();
            assert_eq!(headers["vary"], "Accept");
            assert_eq!(headers.contains_key("allow"), status == 405, "{path}");
            let kind = headers["content-type"].to_str().expect("text").to_owned();
            let text = answer.text().await.expect("text");
            if is_page {
                assert_eq!(kind, "text/html; charset=utf-8", "{path}");
                assert!(text.starts_with("<!doctype html>") && text.contains("<h1>"), "{path}: {text}");
                assert!(!text.contains('{'), "{text}");
            } else {
                assert_eq!(kind, "application/problem+json", "{path}: {text}");
                let problem: Value = serde_json::from_str(&text).expect("JSON");
                assert_eq!(problem["status"], status, "{text}");
                assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()), "{text}");
                assert!(problem["instance"].is_string(), "{path}: {text}");
            }
        }
    }
    // An answer to HEAD has no body in any form.
    let head = client().head(format!("{}/nothing", served.address)).send().await.expect("an answer");
    assert_eq!((head.status(), head.text().await.expect("text").as_str()), (StatusCode::NOT_FOUND, ""));
}

#[test]
fn a_database_that_is_away_is_a_page_for_people_and_a_problem_for_programs() {
    let home = Home::embedded();
    let served = serve(&home, &[]);
    let frozen = Frozen::new(&home);
    let get = |accept: &str| {
        served.raw(&format!(
            "GET /builds/1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: {accept}\r\n\r\n"
        ))
    };

    let (page, problem) = (get("text/html"), get("*/*"));
    drop(frozen);

    for (answer, kind) in [(&page, "text/html; charset=utf-8"), (&problem, "application/problem+json")] {
        assert!(answer.starts_with("HTTP/1.1 503 ") || answer.starts_with("HTTP/1.1 504 "), "{answer}");
        assert!(answer.contains(&format!("content-type: {kind}\r\n")), "{answer}");
    }
    assert!(page.contains("Try again in a while"), "{page}");
}

#[db_testkit::test]
async fn a_body_that_does_not_come_is_told_as_that(db: TestDb) {
    let served = serve(&Home::on(&db), &["--allow-start"]);
    let token = served.token.clone().expect("a token");

    let answer = served.raw(&format!(
        "POST /api/builds HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    ));

    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("the request's body did not arrive") && !answer.contains("database"), "{answer}");
}

/// A server with this limit of open files.
fn serve_with_files(home: &Home, files: u32) -> Served {
    let program = home.buildwatch(["serve", "--json", "--listen", "127.0.0.1:0"]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &format!("ulimit -n {files}; exec \"$0\" \"$@\"")]).arg(program.get_program());
    shell.args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    serve_by(shell)
}

#[db_testkit::test]
async fn clients_that_say_nothing_keep_nobody_from_being_served_and_are_said_once(db: TestDb) {
    let home = Home::on(&db);
    assert!(home.run("echo hello").status.success());
    let served = serve_with_files(&home, 200);
    for beginning in ["", "GET /api/builds HTTP/1.1\r\nHost: loc"] {
        let mut idle: Vec<TcpStream> = (0..250).map(|_| served.connect()).collect();
        for stream in &mut idle {
            // The server may have closed it for another connection by now.
            stream.write_all(beginning.as_bytes()).ok();
        }

        let list = served.json("/api/builds").await;
        assert_eq!(list.as_array().map(Vec::len), Some(1));
    }
    let said: Vec<String> =
        served.live.errors().into_iter().filter(|line| line.contains("connections")).collect();
    assert_eq!(said.len(), 1, "{said:?}");
}

#[db_testkit::test]
async fn streams_leave_room_for_requests(db: TestDb) {
    let home = Home::on(&db);
    let gate = home.fifo("gate");
    let run = home.start(["run", "--", "sh", "-c", &format!("echo one; read go < {}", gate.display())]);
    assert_eq!(run.line(), "one");
    let served = serve_with_files(&home, 120);
    let request = "GET /api/builds/1/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut streams: Vec<TcpStream> = (0..60).map(|_| served.connect()).collect();
    let mut statuses = Vec::new();
    for stream in &mut streams {
        stream.write_all(request.as_bytes()).expect("written");
        let mut status = [0; 12];
        stream.read_exact(&mut status).expect("an answer");
        statuses.push(String::from_utf8_lossy(&status[9..]).into_owned());
    }

    assert_eq!(statuses.iter().filter(|status| *status == "200").count(), 45, "{statuses:?}");
    assert!(statuses.iter().all(|status| status == "200" || status == "503"), "{statuses:?}");
    assert_eq!(served.json("/api/builds").await.as_array().map(Vec::len), Some(1));
    drop(streams);
    std::fs::write(&gate, "go\n").expect("written");
}

#[db_testkit::test]
async fn a_thousand_idle_connections_stand_beside_one_that_works(db: TestDb) {
    let home = Home::on(&db);
    let served = serve_with_files(&home, 4096);
    let idle: Vec<TcpStream> = (0..1000).map(|_| served.connect()).collect();

    for _ in 0..20 {
        served.json("/api/builds").await;
    }
    assert_eq!(idle.len(), 1000);
    assert!(served.live.errors().is_empty());
}

#[db_testkit::test]
async fn a_head_that_does_not_come_ends_its_connection(db: TestDb) {
    let served = serve(&Home::on(&db), &[]);
    let mut idle = served.connect();
    let mut half = served.connect();
    half.write_all(b"GET / HTTP/1.1\r\nHost: loc").expect("written");
    let mut used = served.connect();
    used.write_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("written");

    assert_eq!((read_all(&mut idle).as_str(), read_all(&mut half).as_str()), ("", ""));
    assert!(read_all(&mut used).starts_with("HTTP/1.1 200 "));
}

/// Clients that hold a connection: half a request, a request without its body, and an answer that is not read.
#[db_testkit::test]
async fn clients_that_hang_do_not_keep_a_server_from_ending(db: TestDb) {
    let home = Home::on(&db);
    assert!(home.run("seq 1 300000").status.success());
    let mut served = serve(&home, &["--allow-start"]);
    let token = served.token.clone().expect("a token");
    let mut hanging = Vec::new();
    for bytes in [
        String::new(),
        "GET / HTTP/1.1\r\nHost: loc".to_owned(),
        "GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT".to_owned(),
        format!(
            "POST /api/builds HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
        ),
        "GET /api/builds/1/events HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
    ] {
        let mut stream = served.connect();
        stream.write_all(bytes.as_bytes()).expect("written");
        hanging.push(stream);
    }
    // The stream's first bytes have arrived, so the server has accepted all of them.
    hanging[4].peek(&mut [0; 1]).expect("an answer");
    served.json("/api/builds").await;

    served.live.signal("TERM");

    assert_eq!(served.live.ended().code(), Some(0));
    let said = served.live.errors();
    assert!(!said.iter().any(|line| line.contains("cancelled")), "{said:?}");
    for stream in &hanging {
        stream.shutdown(Shutdown::Both).ok();
    }
}
