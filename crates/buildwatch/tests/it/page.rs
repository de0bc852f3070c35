//! The pages in headless Chromium, driven by chromedriver; both must be on the `PATH`.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use db_testkit::TestDb;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::serving::{serve, serve_on};
use crate::support::{Home, PATIENCE};

/// A browser with its own driver, ended on drop.
struct Browser {
    client: Client,
    driver: Child,
    _profile: TempDir,
}

impl Browser {
    async fn open() -> Self {
        let profile = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is on the PATH (Debian: chromium-driver)");
        let mut arguments = [
            "--headless",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.push(format!("--user-data-dir={}", profile.path().display()));
        if nix::unistd::geteuid().is_root() {
            // Chromium's sandbox refuses root.
            arguments.push("--no-sandbox".to_owned());
        }
        let capabilities = json!({ "goog:chromeOptions": { "args": arguments } });
        let Value::Object(capabilities) = capabilities else { unreachable!("an object was written above") };
        let address = format!("http://127.0.0.1:{port}");
        let connected = tokio::time::timeout(PATIENCE, async {
            loop {
                let mut builder = ClientBuilder::new(HttpConnector::new());
                match builder.capabilities(capabilities.clone()).connect(&address).await {
                    Ok(client) => break client,
                    // The driver needs a moment until it listens.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        });
        let client = connected.await.expect("a browser in time");
        Self { client, driver, _profile: profile }
    }

    async fn goto(&self, address: &str) {
        self.client.goto(address).await.expect("the page opens");
    }

    async fn text(&self, id: &str) -> String {
        let script = format!("return document.getElementById('{id}')?.textContent ?? ''");
        self.evaluate(&script).await.as_str().expect("text").to_owned()
    }

    async fn evaluate(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.expect("the script runs")
    }

    /// Waits until an element's text satisfies `fits`.
    async fn until(&self, id: &str, fits: impl Fn(&str) -> bool) -> String {
        let mut text = String::new();
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                text = self.text(id).await;
                if fits(&text) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(waited.await.is_ok(), "#{id} stays at {text:?}");
        text
    }

    async fn close(mut self) {
        self.client.clone().close().await.expect("the browser closes");
        self.driver.kill().expect("the driver is killed");
        self.driver.wait().expect("the driver's end");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // After a failed test: only SIGTERM makes the driver end its browser.
        if let Ok(None) = self.driver.try_wait() {
            crate::support::signal("TERM", &[self.driver.id()]);
            self.driver.wait().ok();
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

#[db_testkit::test]
async fn live_lines_appear_without_a_reload_and_a_reload_resumes(db: TestDb) {
    let home = Home::on(&db);
    let (second, third) = (home.fifo("second"), home.fifo("third"));
    let script = format!(
        "echo one; read go < {}; echo two; read go < {}; echo three",
        second.display(),
        third.display()
    );
    let mut run = home.start(["run", "--", "sh", "-c", &script]);
    assert_eq!(run.line(), "one");
    let served = serve(&home, &[]);
    let browser = Browser::open().await;
    browser.goto(&format!("{}/builds/1", served.address)).await;
    browser.until("log", |text| text == "one\n").await;
    browser.until("status", |text| text == "running").await;
    browser.evaluate("window.notReloaded = true").await;

    std::fs::write(&second, "go\n").expect("written");
    browser.until("log", |text| text == "one\ntwo\n").await;
    assert_eq!(browser.evaluate("return window.notReloaded").await, true);

    browser.client.refresh().await.expect("a reload");
    browser.until("log", |text| text == "one\ntwo\n").await;
    std::fs::write(&third, "go\n").expect("written");
    browser.until("log", |text| text == "one\ntwo\nthree\n").await;
    browser.until("status", |text| text == "succeeded (0)").await;
    assert_eq!(browser.client.title().await.expect("a title"), "Build 1: succeeded");

    assert!(run.ended().success());
    browser.close().await;
}

#[db_testkit::test]
async fn the_browser_s_own_event_source_sees_the_end_of_a_stream_and_stays_away(db: TestDb) {
    let home = Home::on(&db);
    let gate = home.fifo("gate");
    let mut run = home.start(["run", "--", "sh", "-c", &format!("echo one; read go < {}", gate.display())]);
    assert_eq!(run.line(), "one");
    let served = serve(&home, &[]);
    let browser = Browser::open().await;
    // A page of the same origin that follows no build.
    browser.goto(&served.address).await;
    browser
        .evaluate(
            "window.seen = [];
             window.source = new EventSource('/api/builds/1/events');
             for (const kind of ['stdout', 'end', 'stream-end'])
               source.addEventListener(kind, (event) => seen.push(`${kind} ${parseInt(event.lastEventId, 10)}`));
             source.addEventListener('stream-end', (event) => seen.push(event.data));",
        )
        .await;
    let seen = async |wanted: Value| {
        let waited = tokio::time::timeout(PATIENCE, async {
            while browser.evaluate("return [seen, source.readyState]").await != wanted {}
        });
        let is_there = waited.await.is_ok();
        assert!(
            is_there,
            "{} instead of {wanted}",
            browser.evaluate("return [seen, source.readyState]").await
        );
    };
    seen(json!([["stdout 1"], 1])).await;

    std::fs::write(&gate, "go\n").expect("written");

    // It reconnects with the last id that it saw, gets 204, and stops for good.
    seen(json!([["stdout 1", "end 2", "stream-end 2", "finished"], 2])).await;
    assert!(run.ended().success());
    browser.close().await;
}

#[db_testkit::test]
async fn a_page_survives_a_server_that_is_killed_and_restarted(db: TestDb) {
    let home = Home::on(&db);
    let gate = home.fifo("gate");
    let script = format!("seq 1 100; read go < {}; seq 101 200", gate.display());
    let mut run = home.start(["run", "--", "sh", "-c", &script]);
    assert_eq!(run.line(), "1");
    let mut first = serve(&home, &[]);
    let address = first.address.trim_start_matches("http://").to_owned();
    let browser = Browser::open().await;
    browser.goto(&format!("{}/builds/1", first.address)).await;
    browser.until("log", |text| text.ends_with("100\n")).await;
    browser.evaluate("window.notReloaded = true").await;

    first.live.kill();
    browser.until("connection", |text| text.contains("was lost")).await;
    std::fs::write(&gate, "go\n").expect("written");
    assert!(run.ended().success());
    let _second = serve_on(&home, &address, &[]);

    let log = browser.until("log", |text| text.ends_with("200\n")).await;
    assert_eq!(log, crate::support::lines(200, ""), "each line once, in order");
    browser.until("status", |text| text == "succeeded (0)").await;
    assert_eq!(browser.evaluate("return window.notReloaded").await, true);
    browser.close().await;
}

#[db_testkit::test]
async fn a_page_shows_what_a_server_has_that_has_lost_some_lines(db: TestDb) {
    let home = Home::on(&db);
    let (gate, end) = (home.fifo("gate"), home.fifo("end"));
    let script = format!("echo one; read go < {}; echo two; read go < {}", gate.display(), end.display());
    let mut run = home.start(["run", "--", "sh", "-c", &script]);
    assert_eq!(run.line(), "one");
    std::fs::write(&gate, "go\n").expect("written");
    assert_eq!(run.line(), "two");
    // Killed, since it would end the build when it sees the changed log.
    run.signal("KILL");
    run.ended();
    let served = serve(&home, &[]);
    let browser = Browser::open().await;
    browser.goto(&format!("{}/builds/1", served.address)).await;
    browser.until("log", |text| text == "one\ntwo\n").await;

    // As after a failover to a standby that had not received the second line.
    let rewind = "with lost as (delete from event_log_batches where last = 2 returning *)
                  insert into event_log_batches
                  select log, 3, 3, 9, types, array['{\"text\":\"zwei\"}'], false from lost";
    let mut rewinding = db.pool().begin().await.expect("begun");
    sqlx::query(rewind).execute(&mut *rewinding).await.expect("lost");
    sqlx::query("update event_log_batches set first = 2, last = 2 where first = 3")
        .execute(&mut *rewinding)
        .await
        .expect("in its place");
    rewinding.commit().await.expect("committed");

    browser.until("log", |text| text == "one\nzwei\n").await;
    let more = "insert into event_log_batches
                select log, 3, 3, 10, types, array['{\"text\":\"three\"}'], false from event_log_batches where last = 2";
    sqlx::query(more).execute(&db.pool()).await.expect("more");
    browser.until("log", |text| text == "one\nzwei\nthree\n").await;
    browser.close().await;
}

#[db_testkit::test]
async fn output_is_text_whatever_is_in_it(db: TestDb) {
    let home = Home::on(&db);
    home.run(r#"printf '<script>document.title = "taken"</script><img src=x onerror="document.title=1">\n\033[31m\377\n'"#);
    let served = serve(&home, &[]);
    let browser = Browser::open().await;

    browser.goto(&format!("{}/builds/1", served.address)).await;

    let log = browser.until("log", |text| text.matches('\n').count() == 2).await;
    assert!(log.starts_with("<script>document.title"), "{log}");
    assert!(log.ends_with("\u{241b}[31m\u{fffd}\n"), "{log:?}");
    assert_eq!(browser.evaluate("return document.querySelectorAll('#log img, #log script').length").await, 0);
    assert_eq!(browser.client.title().await.expect("a title"), "Build 1: succeeded");
    browser.close().await;
}

#[db_testkit::test]
async fn a_build_is_started_from_the_page_that_was_opened_with_the_token(db: TestDb) {
    let home = Home::on(&db);
    let served = serve(&home, &["--allow-start"]);
    let browser = Browser::open().await;
    let hidden = "return document.getElementById('start').hidden";
    browser.goto(&served.address).await;
    assert_eq!(browser.evaluate(hidden).await, true, "nobody gets the token from the page");

    let token = served.token.as_deref().expect("a token");
    browser.goto(&format!("{}/#token={token}", served.address)).await;
    let offered = tokio::time::timeout(PATIENCE, async { while browser.evaluate(hidden).await != false {} });
    assert!(offered.await.is_ok(), "the form stays hidden");
    assert_eq!(
        browser.client.current_url().await.expect("an address").fragment(),
        None,
        "it leaves the address bar"
    );
    let field = browser.client.find(Locator::Id("command")).await.expect("a field");
    field.send_keys("printf '%s|' one \"two words\" three").await.expect("typed");
    let button = browser.client.find(Locator::Css("#start button")).await.expect("a button");
    button.click().await.expect("clicked");

    browser.until("log", |text| text == "one|two words|three|").await;
    browser.until("status", |text| text == "succeeded (0)").await;
    browser.goto(&served.address).await;
    browser.until("builds", |text| text.starts_with("1succeeded0")).await;
    browser.close().await;
}

#[db_testkit::test]
async fn a_page_keeps_the_last_lines_of_a_long_build(db: TestDb) {
    let home = Home::on(&db);
    assert!(home.run("seq 1 100000").status.success());
    let served = serve(&home, &[]);
    let browser = Browser::open().await;

    browser.goto(&format!("{}/builds/1", served.address)).await;

    let log = browser.until("log", |text| text.ends_with("\n100000\n")).await;
    assert!(log.lines().count() <= 21_000, "{} lines", log.lines().count());
    let cut = browser.text("cut").await;
    assert!(cut.ends_with("earlier lines are not shown; buildwatch watch 1 prints them all."), "{cut}");
    browser.close().await;
}

#[db_testkit::test]
async fn a_page_off_loopback_shows_builds_to_holders_of_the_token(db: TestDb) {
    let home = Home::on(&db);
    let gate = home.fifo("gate");
    let mut run =
        home.start(["run", "--", "sh", "-c", &format!("echo one; read go < {}; echo two", gate.display())]);
    assert_eq!(run.line(), "one");
    let served = serve_on(&home, "0.0.0.0:0", &[]);
    let browser = Browser::open().await;
    for path in ["/", "/builds/1"] {
        browser.goto(&format!("{}{path}", served.address)).await;
        browser.until("connection", |text| text.contains("requires its token")).await;
    }
    assert_eq!(browser.text("log").await, "");

    let token = served.token.as_deref().expect("a token");
    browser.goto(&format!("{}/#token={token}", served.address)).await;
    browser.until("builds", |text| text.starts_with("1running")).await;
    assert_eq!(
        browser.evaluate("return document.getElementById('start').hidden").await,
        true,
        "it is for reading only"
    );
    let link = browser.client.find(Locator::Css("#builds a")).await.expect("a link");
    link.click().await.expect("clicked");
    browser.until("log", |text| text == "one\n").await;
    std::fs::write(&gate, "go\n").expect("written");
    browser.until("log", |text| text == "one\ntwo\n").await;
    browser.until("status", |text| text == "succeeded (0)").await;

    assert!(run.ended().success());
    let asked = "return performance.getEntriesByType('resource').map((entry) => entry.name).join(' ') + document.cookie";
    let asked = browser.evaluate(asked).await;
    assert!(!asked.as_str().expect("text").contains(token), "{asked}");
    browser.close().await;
}

#[db_testkit::test]
async fn a_page_shows_what_nobody_sees_by_its_number(db: TestDb) {
    let home = Home::on(&db);
    let text = "de\u{202e}ni\u{202c}ed a\u{200b}b \u{3164} \u{85} 👩\u{200d}🚀";
    let seen = "de\\u{202e}ni\\u{202c}ed a\\u{200b}b \\u{3164} \\u{85} 👩\u{200d}🚀";
    assert!(home.output(["run", "--", "printf", "%s\\n", text]).status.success());
    home.output(["run", "--", "no-such-\u{202e}dnammoc"]);
    let served = serve(&home, &[]);
    let browser = Browser::open().await;

    browser.goto(&format!("{}/builds/1", served.address)).await;
    browser.until("log", |shown| shown == format!("{seen}\n")).await;
    browser.until("command", |shown| shown.ends_with(seen)).await;
    browser.goto(&format!("{}/builds/2", served.address)).await;
    browser.until("message", |shown| shown == "command not found: no-such-\\u{202e}dnammoc").await;
    browser.goto(&served.address).await;
    browser.until("builds", |shown| shown.contains(seen)).await;
    let title = browser.evaluate("return document.querySelectorAll('td.command')[1].title").await;
    assert!(title.as_str().is_some_and(|title| title.ends_with(seen)), "{title}");
    browser.close().await;
}

#[db_testkit::test]
async fn an_address_without_a_build_is_a_page(db: TestDb) {
    let served = serve(&Home::on(&db), &[]);
    let browser = Browser::open().await;

    for path in ["/builds/99", "/nothing", "/api/nothing", "/builds/%ff"] {
        browser.goto(&format!("{}{path}", served.address)).await;
        let heading = browser.evaluate("return document.querySelector('h1')?.textContent").await;
        assert!(heading == "Not Found" || heading == "Bad Request", "{path}: {heading}");
    }
    browser.close().await;
}
