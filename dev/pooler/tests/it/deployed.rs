//! The example files in `deploy`, run as they are except for names and paths.
#![expect(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use db_embedded::Server;
use db_testkit::{PgBouncer, TestDb, TestServer};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::{PATIENCE, open_dir};

const INI: &str = include_str!("../../../../deploy/pgbouncer.ini");
const COMPOSE: &str = include_str!("../../../../deploy/pgbouncer.compose.ini");
const SQL: &str = include_str!("../../../../deploy/pgbouncer.sql");

/// Settings that the kit overrides.
const OF_THE_KIT: [&str; 5] =
    ["listen_addr", "listen_port", "auth_file", "server_tls_sslmode", "server_tls_ca_file"];

/// A PgBouncer with the file, in front of a server that asks all roles but the test's own for a password.
struct Deployed {
    bouncer: PgBouncer,
    db: TestDb,
    _dir: TempDir,
}

impl Deployed {
    async fn start() -> Deployed {
        Deployed::with(INI).await
    }

    async fn with(ini: &str) -> Deployed {
        let dir = open_dir();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
            path.display().to_string()
        };
        let rules = write("pg_hba.conf", "local all postgres peer map=owner\nlocal all all scram-sha-256\n");
        let server = TestServer::start(Server::throwaway().setting("hba_file", rules)).await.unwrap();
        let db = server.empty().await.unwrap();
        db.pool().execute("create role app login password 'of the app'").await.unwrap();
        db.pool().execute(sqlx::raw_sql(SQL)).await.unwrap();
        db.pool().execute("alter role pgbouncer password 'of the pooler'").await.unwrap();
        db.pool().execute("alter role postgres password 'of the superuser'").await.unwrap();

        let ini = ini
            .replace("db.example.com port", &format!("{} port", socket_dir(&db).display()))
            .replace("dbname=app", &format!("dbname={}", db.name()));
        let bouncer = PgBouncer::builder()
            .include(write("pgbouncer.ini", &ini))
            .setting("auth_type", "scram-sha-256")
            .setting("auth_file", write("userlist.txt", "\"pgbouncer\" \"of the pooler\"\n"));
        Deployed { bouncer: bouncer.start(&db).await.unwrap(), db, _dir: dir }
    }

    fn app(&self) -> PgConnectOptions {
        self.bouncer.options().database("app").username("app").password("of the app")
    }
}

fn socket_dir(db: &TestDb) -> &Path {
    db.server().unwrap().socket_dir()
}

fn complaints(bouncer: &PgBouncer) -> Vec<String> {
    let is_one = |line: &&str| [" WARNING ", " ERROR ", " FATAL "].iter().any(|level| line.contains(level));
    bouncer.log().unwrap().lines().filter(is_one).map(str::to_owned).collect()
}

async fn ask(connection: &mut PgConnection, sql: &str) -> String {
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(connection).await.unwrap()
}

#[tokio::test]
async fn every_setting_of_the_example_is_in_force_and_none_is_complained_of() {
    let deployed = Deployed::start().await;
    let admin = deployed.bouncer.options().database("pgbouncer").username("pgbouncer");
    let mut admin = admin.password("of the pooler").connect().await.unwrap();

    let shown = admin.fetch_all(sqlx::raw_sql("show config")).await.unwrap();

    let shown: Vec<(&str, Option<&str>)> =
        shown.iter().map(|row| (row.get("key"), row.get("value"))).collect();
    let settings = INI.split_once("[pgbouncer]").unwrap().1.lines().filter(|line| !line.starts_with(';'));
    for (name, value) in settings.filter_map(|line| line.split_once(" = ")) {
        if !OF_THE_KIT.contains(&name) {
            assert!(shown.contains(&(name, Some(value))), "{name} = {value} is not among {shown:?}");
        }
    }
    assert_eq!(complaints(&deployed.bouncer), [""; 0]);
}

#[tokio::test]
async fn what_differs_in_compose_goes_on_where_the_example_ends() {
    let ini = COMPOSE.replace("%include /etc/pgbouncer/production.ini", INI);
    assert_eq!(
        ini.lines().filter(|line| *line == "[pgbouncer]").count(),
        1,
        "the last one would forget the others"
    );
    let deployed = Deployed::with(&ini).await;

    let mut connection = deployed.app().database(deployed.db.name()).connect().await.unwrap();

    assert_eq!(ask(&mut connection, "select current_database()::text").await, deployed.db.name());
    assert_eq!(complaints(&deployed.bouncer), [""; 0]);
    // PgBouncer checks who may use its administration console.
    let admin = deployed.app().database("pgbouncer").connect().await.unwrap_err();
    assert!(admin.as_database_error().unwrap().message().contains("not allowed"), "{admin}");
    deployed.app().password("guessed").connect().await.unwrap_err();
}

#[tokio::test]
async fn a_role_logs_in_by_its_own_password_and_no_other() {
    let deployed = Deployed::start().await;

    let mut connection = deployed.app().connect().await.unwrap();

    assert_eq!(ask(&mut connection, "select current_user::text").await, "app");
    let guessed = deployed.app().password("guessed");
    // A superuser's verifier is not told.
    let superuser = deployed.app().username("postgres").password("of the superuser");
    for (wrong, why) in [(guessed, "authentication failed"), (superuser, "no such user")] {
        let refused = wrong.connect().await.unwrap_err();
        let refused = refused.as_database_error().unwrap().message().to_owned();
        assert!(refused.contains(why), "{refused}");
    }
}

#[tokio::test]
async fn statements_have_a_limit_from_the_role_and_from_the_first_query_of_a_session() {
    let deployed = Deployed::start().await;
    let limit = "select current_setting('statement_timeout')";
    // Both files set the same limit.
    deployed.db.pool().execute("alter role app set statement_timeout = '29s'").await.unwrap();
    let mut connection = deployed.app().connect().await.unwrap();

    let mut tx = connection.begin().await.unwrap();

    assert_eq!(ask(&mut tx, limit).await, "30s");
    tx.execute("reset statement_timeout").await.unwrap();
    assert_eq!(ask(&mut tx, limit).await, "29s");
}

#[tokio::test]
async fn a_statement_whose_client_has_gone_ends_long_before_its_limit() {
    let deployed = Deployed::start().await;
    let sleeps = |session: &db_testkit::Session| session.query.contains("pg_sleep(28)");
    let mut connection = deployed.app().connect().await.unwrap();

    let sleeping = timeout(PATIENCE, async {
        tokio::select! {
            _ = connection.execute("select pg_sleep(28)") => panic!("not before it is cut off"),
            () = async { drop(deployed.db.until_sessions("it sleeps", |all| all.iter().any(sleeps)).await) } => {}
        }
    });
    sleeping.await.unwrap();
    drop(connection);

    deployed.db.until_sessions("nobody sleeps", |all| !all.iter().any(sleeps)).await;
}
