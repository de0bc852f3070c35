//! db-testkit's `PgBouncer` between a test and its database.
#![expect(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use db_embedded::Server;
use db_testkit::{Error, PgBouncer, TestDb, TestServer, until};
use nix::unistd::Uid;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row};
use tokio::time::timeout;

use crate::support::{PATIENCE, old_program, open_dir};

/// For a child: the database to put a PgBouncer in front of.
const ORDER: &str = "DB_TESTKIT_TEST_BOUNCE";

async fn connect(bouncer: &PgBouncer) -> PgConnection {
    timeout(PATIENCE, bouncer.options().connect()).await.unwrap().unwrap()
}

async fn backend(connection: &mut PgConnection) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await.unwrap()
}

/// Answers of the simple protocol, which prepares nothing.
async fn texts(connection: &mut PgConnection, sql: &str) -> Vec<String> {
    let rows = connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// The folder of its socket.
fn folder_of(bouncer: &PgBouncer) -> PathBuf {
    bouncer.options().get_socket().unwrap().clone()
}

/// Whether a process exists and is not a zombie.
fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[db_testkit::test]
async fn statements_pass_through_it(db: TestDb) {
    let bouncer = PgBouncer::start(&db).await.unwrap();
    let mut connection = connect(&bouncer).await;

    let mut tx = connection.begin().await.unwrap();
    tx.execute("create table word as select 'kept' as t").await.unwrap();
    tx.commit().await.unwrap();

    let word: String = sqlx::query_scalar("select t from word where t = $1")
        .bind("kept")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(word, "kept");
    let here: String =
        sqlx::query_scalar("select current_database()::text").fetch_one(&db.pool()).await.unwrap();
    assert_eq!(here, db.name());
}

#[db_testkit::test]
async fn its_address_names_it_and_its_options_lead_to_other_databases(db: TestDb) {
    let bouncer = PgBouncer::start(&db).await.unwrap();

    let folder = folder_of(&bouncer).display().to_string().replace('/', "%2F");
    let expected = format!("host={folder}&sslmode=disable&pgbouncer=true");
    let url = bouncer.url();

    assert!(url.contains(&format!("@localhost:6432/{}?", db.name())), "{url}");
    assert!(url.ends_with(&expected), "{url}");
    let mut admin = bouncer.options().database("pgbouncer").connect().await.unwrap();
    let shown = texts(&mut admin, "show version").await;
    let (major, minor, patch) = bouncer.version();
    assert_eq!(shown, [format!("PgBouncer {major}.{minor}.{patch}")]);
    assert!(bouncer.url_of("pgbouncer").contains("/pgbouncer?"), "{}", bouncer.url_of("pgbouncer"));
}

#[db_testkit::test]
async fn two_clients_share_one_session_of_the_server(db: TestDb) {
    let bouncer = PgBouncer::builder().default_pool_size(1).start(&db).await.unwrap();
    let (mut one, mut other) = (connect(&bouncer).await, connect(&bouncer).await);

    assert_eq!(backend(&mut one).await, backend(&mut other).await);
}

#[db_testkit::test]
async fn a_new_one_renames_prepared_statements(db: TestDb) {
    let bouncer = PgBouncer::builder().max_prepared_statements(10).start(&db).await.unwrap();
    let mut connection = connect(&bouncer).await;

    sqlx::query("select 4711").execute(&mut connection).await.unwrap();

    let names = texts(&mut connection, "select name from pg_prepared_statements").await;
    assert_eq!(names.len(), 1, "{names:?}");
    assert!(names[0].starts_with("PGBOUNCER_"), "{names:?}");
}

#[db_testkit::test]
async fn an_old_one_knows_nothing_of_prepared_statements(db: TestDb) {
    let bouncer = PgBouncer::builder().program(old_program()).default_pool_size(1).start(&db).await.unwrap();
    let mut connection = connect(&bouncer).await;

    sqlx::query("select 4711").execute(&mut connection).await.unwrap();

    assert!(bouncer.version() < (1, 21, 0), "{:?}", bouncer.version());
    assert_eq!(texts(&mut connection, "select name from pg_prepared_statements").await, ["sqlx_s_1"]);
    let mut other = connect(&bouncer).await;
    let refused = sqlx::query("select 4712").execute(&mut other).await.unwrap_err();
    // Both clients share one session, so the second name is taken.
    assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "42P05", "{refused}");
}

#[db_testkit::test]
async fn a_pooler_ends_with_its_value(db: TestDb) {
    let bouncer = PgBouncer::start(&db).await.unwrap();
    let (folder, pid) = (folder_of(&bouncer), bouncer.pid().unwrap());
    let mut connection = connect(&bouncer).await;
    backend(&mut connection).await;
    assert!(runs(pid) && folder.exists());

    drop(bouncer);

    assert!(!runs(pid), "{pid} runs");
    assert!(!folder.exists(), "{} is there", folder.display());
    assert!(connection.ping().await.is_err());
    db.until_sessions("none", <[_]>::is_empty).await;
}

#[db_testkit::test]
async fn a_killed_one_is_lost_to_its_clients_and_comes_back_at_the_same_address(db: TestDb) {
    let bouncer = PgBouncer::start(&db).await.unwrap();
    let (mut lost, before) = (connect(&bouncer).await, bouncer.pid().unwrap());
    backend(&mut lost).await;

    bouncer.kill().unwrap();

    assert_eq!((bouncer.pid(), runs(before)), (None, false));
    assert!(matches!(lost.ping().await, Err(sqlx::Error::Io(_))));
    assert!(matches!(bouncer.options().connect().await, Err(sqlx::Error::Io(_))));
    db.until_sessions("none", <[_]>::is_empty).await;

    bouncer.restart().await.unwrap();

    connect(&bouncer).await.ping().await.unwrap();
    assert_ne!(bouncer.pid().unwrap(), before);
}

#[db_testkit::test]
async fn a_running_pooler_is_restarted_by_killing_it(db: TestDb) {
    let bouncer = PgBouncer::start(&db).await.unwrap();
    let (mut lost, before) = (connect(&bouncer).await, bouncer.pid().unwrap());

    bouncer.restart().await.unwrap();

    assert!(!runs(before), "{before} runs");
    assert!(lost.ping().await.is_err());
    connect(&bouncer).await.ping().await.unwrap();
}

#[tokio::test]
async fn a_pooler_stands_before_a_throwaway_server() {
    let server = TestServer::throwaway().await.unwrap();
    let db = server.empty().await.unwrap();
    let bouncer = PgBouncer::builder().to_server(&server).await.unwrap();

    let options = bouncer.options().database(db.name());
    let here = texts(&mut options.connect().await.unwrap(), "select current_database()::text").await;

    assert_eq!(here, [db.name()]);
}

#[db_testkit::test]
async fn the_refusals_of_a_pooler_are_told_in_its_own_words(db: TestDb) {
    match PgBouncer::builder().setting("no_such_setting", "1").start(&db).await {
        Err(Error::PgBouncerFailed { log }) => assert!(log.contains("no_such_setting"), "{log}"),
        other => panic!("{other:?}"),
    }
}

#[db_testkit::test]
async fn a_program_that_is_none_is_named_with_what_to_install(db: TestDb) {
    for (program, why) in [("/no/such/program", "No such file"), ("/bin/sh", "--version")] {
        match PgBouncer::builder().program(program).start(&db).await {
            Err(error @ Error::NoPgBouncer { .. }) => {
                let text = error.to_string();
                assert!(text.contains(program) && text.contains(why), "{text}");
                assert!(text.contains("apt install pgbouncer"), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[db_testkit::test]
async fn its_folder_is_closed_to_others_and_it_has_no_port(db: TestDb) {
    let bouncer = PgBouncer::start(&db).await.unwrap();
    let folder = folder_of(&bouncer);
    let status = std::fs::read_to_string(format!("/proc/{}/status", bouncer.pid().unwrap())).unwrap();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    let uid: u32 = uids.split_whitespace().next().unwrap().parse().unwrap();

    assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(folder.metadata().unwrap().uid(), uid);
    assert!(uid != 0 && (Uid::effective().is_root() || uid == Uid::effective().as_raw()), "{uid}");
    let log = bouncer.log().unwrap();
    let listens: Vec<&str> = log.lines().filter(|line| line.contains("listening on")).collect();
    assert!(listens.len() == 1 && listens[0].contains(&folder.display().to_string()), "{log}");
}

/// In a child: starts a PgBouncer in front of a database, prints its address, and keeps both until its input ends. In a normal
/// run: nothing.
#[test]
fn puts_one_before_a_database_when_told_to() {
    if std::env::var_os(ORDER).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let db = TestDb::empty().await.unwrap();
        let bouncer = PgBouncer::start(&db).await.unwrap();
        let role = texts(&mut connect(&bouncer).await, "select current_user::text").await.remove(0);
        let (pid, folder, url) = (bouncer.pid().unwrap(), folder_of(&bouncer), bouncer.url());
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "\nBOUNCES\t{pid}\t{}\t{role}\t{url}", folder.display()).unwrap();
        stdout.flush().unwrap();
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    });
}

struct Other {
    child: Child,
    /// Kept open, so that the child can write its last output.
    _stdout: Lines<BufReader<ChildStdout>>,
    pid: u32,
    folder: PathBuf,
    role: String,
    url: String,
}

impl Other {
    fn start(change: impl FnOnce(&mut Command)) -> Other {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["kit::puts_one_before_a_database_when_told_to", "--exact", "--nocapture"]);
        command.env(ORDER, "yes").stdin(Stdio::piped()).stdout(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = lines.find_map(|line| line.unwrap().strip_prefix("BOUNCES\t").map(str::to_owned));
        let told = told.expect("the child has a PgBouncer");
        let words: Vec<&str> = told.split('\t').collect();
        let [pid, folder, role, url] = words[..] else { panic!("{told}") };
        Other {
            child,
            _stdout: lines,
            pid: pid.parse().unwrap(),
            folder: folder.into(),
            role: role.into(),
            url: url.into(),
        }
    }

    fn end(mut self) {
        self.child.stdin = None;
        assert!(self.child.wait().unwrap().success());
    }
}

#[tokio::test]
async fn a_pooler_ends_when_the_test_process_is_killed() {
    let mut other = Other::start(|_| {});
    assert!(runs(other.pid) && other.folder.exists());

    other.child.kill().unwrap();
    other.child.wait().unwrap();

    until("its process is gone", async || !runs(other.pid)).await;
    until("its folder is gone", async || !other.folder.exists()).await;
}

#[tokio::test]
async fn before_a_given_server_it_logs_in_as_the_address_says_and_shows_no_password() {
    let dir = open_dir();
    let rules = dir.path().join("pg_hba.conf");
    std::fs::write(&rules, "local all all peer map=owner\nhost all all 127.0.0.1/32 scram-sha-256\n")
        .unwrap();
    std::fs::set_permissions(&rules, Permissions::from_mode(0o644)).unwrap();
    let (server, port) = tokio::task::spawn_blocking(move || with_a_port(&rules)).await.unwrap();
    let mut owner = PgConnection::connect(&server.url("postgres")).await.unwrap();
    owner.execute("create role tester login createdb password 'it''s @ secret'").await.unwrap();
    owner.close().await.unwrap();

    let address = format!("postgres://tester:it's%20%40%20secret@127.0.0.1:{port}/postgres");
    let other = Other::start(|command| {
        command.env("DATABASE_URL", &address);
    });

    assert_eq!(other.role, "tester");
    assert!(!other.url.contains("secret") && other.url.contains("://tester@"), "{}", other.url);
    other.end();
}

/// A server that also listens on TCP, with these access rules. It cannot let the kernel choose a port.
fn with_a_port(rules: &Path) -> (Server, u16) {
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Server::throwaway()
            .setting("hba_file", rules.display().to_string())
            .setting("listen_addresses", "127.0.0.1")
            .setting("port", port.to_string());
        match server.start() {
            // Another process took the same port meanwhile.
            Err(db_embedded::Error::StartFailed { log, .. }) if log.contains("could not create any TCP") => {}
            started => return (started.unwrap(), port),
        }
    }
}
