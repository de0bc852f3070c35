//! A primary and its standbys, and what a test does to them.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use db_testkit::{Cluster, Error, Member, Stop, until};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::support::open_dir;

const ORDER: &str = "DB_TESTKIT_TEST_CLUSTER";

async fn connect(member: &Member) -> PgConnection {
    PgConnection::connect(&member.url()).await.unwrap()
}

async fn run(member: &Member, sql: &str) -> Result<(), sqlx::Error> {
    let mut connection = connect(member).await;
    let done = connection.execute(AssertSqlSafe(sql)).await.map(drop);
    connection.close().await?;
    done
}

async fn numbers(member: &Member) -> Vec<i32> {
    let mut connection = connect(member).await;
    let numbers = sqlx::query_scalar("select n from t order by n").fetch_all(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    numbers
}

fn sqlstate(error: &sqlx::Error) -> String {
    error.as_database_error().unwrap().code().unwrap().into_owned()
}

/// Where the processes of the servers are at work, and where the sockets are.
fn home(cluster: &Cluster) -> PathBuf {
    cluster.primary().socket_dir().parent().unwrap().to_owned()
}

/// The processes that work below a folder, or did before it was removed. Linux knows.
fn processes_in(folder: &Path) -> usize {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter(|it| fs::read_link(it.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder))).count()
}

#[tokio::test]
async fn a_promoted_standby_takes_writes_in_its_open_session_and_the_other_standby_follows_it() {
    let mut cluster = Cluster::builder().standbys(2).start().await.unwrap();
    let (old, new, other) = (cluster.primary(), cluster.standby(0), cluster.standby(1));
    run(&old, "create table t (n int); insert into t values (1)").await.unwrap();
    for standby in cluster.standbys() {
        cluster.until_caught_up(&standby).await.unwrap();
        assert_eq!(numbers(&standby).await, [1]);
        let refused = run(&standby, "insert into t values (2)").await.unwrap_err();
        assert_eq!(sqlstate(&refused), "25006");
    }
    let mut open = connect(&new).await;
    open.execute("select n from t").await.unwrap();

    cluster.stop(&old, Stop::Immediate).await.unwrap();
    cluster.promote(&new).await.unwrap();

    open.execute("insert into t values (2)").await.unwrap();
    assert_eq!((cluster.primary(), cluster.standbys()), (new.clone(), vec![other.clone()]));
    cluster.until_caught_up(&other).await.unwrap();
    assert_eq!(numbers(&other).await, [1, 2]);
    assert!(PgConnection::connect(&old.url()).await.is_err(), "a stopped member came back by itself");
}

#[tokio::test]
async fn a_demoted_primary_loses_what_only_it_had_and_follows_the_promoted_one() {
    let mut cluster = Cluster::start().await.unwrap();
    let (old, new) = (cluster.primary(), cluster.standby(0));
    run(&old, "create table t (n int); insert into t values (1)").await.unwrap();
    cluster.until_caught_up(&new).await.unwrap();
    let refused = cluster.demote(&old).await.unwrap_err();
    assert_eq!(refused.to_string(), "cannot demote member 0 of the cluster: that member is the primary");
    cluster.promote(&new).await.unwrap();
    // Both take writes, also after a kill: nobody fences the old one.
    run(&old, "insert into t values (77)").await.unwrap();
    cluster.stop(&old, Stop::Kill).await.unwrap();
    cluster.start_again(&old).await.unwrap();
    run(&old, "insert into t values (78)").await.unwrap();
    run(&new, "insert into t values (2)").await.unwrap();
    assert_eq!((numbers(&old).await, numbers(&new).await), (vec![1, 77, 78], vec![1, 2]));
    // What it has written is then read from its log, as after a power cut.
    cluster.stop(&old, Stop::Kill).await.unwrap();

    cluster.demote(&old).await.unwrap();

    cluster.until_caught_up(&old).await.unwrap();
    assert_eq!(numbers(&old).await, [1, 2]);
    run(&new, "insert into t values (3)").await.unwrap();
    cluster.until_caught_up(&old).await.unwrap();
    assert_eq!(numbers(&old).await, [1, 2, 3]);
    // And it may be promoted again.
    cluster.promote(&old).await.unwrap();
    run(&old, "insert into t values (4)").await.unwrap();
}

#[tokio::test]
async fn a_switchover_loses_nothing_and_each_member_stays_at_its_address() {
    let mut cluster = Cluster::start().await.unwrap();
    let (first, second) = (cluster.primary(), cluster.standby(0));
    run(&first, "create table t (n int); insert into t select generate_series(1, 1000)").await.unwrap();

    cluster.switch_over(&second).await.unwrap();

    assert_eq!((cluster.primary(), cluster.standby(0)), (second.clone(), first.clone()));
    assert_eq!(numbers(&second).await.len(), 1000);
    run(&second, "insert into t values (1001)").await.unwrap();
    cluster.until_caught_up(&first).await.unwrap();
    assert_eq!(numbers(&first).await.len(), 1001);
}

#[tokio::test]
async fn a_paused_standby_receives_and_does_not_replay_and_one_that_is_cut_off_does_not_receive() {
    let mut cluster = Cluster::start().await.unwrap();
    let (primary, standby) = (cluster.primary(), cluster.standby(0));
    run(&primary, "create table t (n int); insert into t values (1)").await.unwrap();
    cluster.until_caught_up(&standby).await.unwrap();

    cluster.pause(&standby).await.unwrap();
    run(&primary, "insert into t values (2)").await.unwrap();

    until("all is received", async || cluster.lag(&standby).await.unwrap().unreceived == 0).await;
    assert!(cluster.lag(&standby).await.unwrap().unreplayed > 0);
    assert_eq!(numbers(&standby).await, [1]);

    // Cut off while the replay is paused.
    cluster.part(&standby).await.unwrap();
    run(&primary, "insert into t values (3)").await.unwrap();

    let lag = cluster.lag(&standby).await.unwrap();
    assert!(lag.unreceived > 0 && lag.unreplayed > lag.unreceived, "{lag:?}");
    cluster.resume(&standby).await.unwrap();
    until("what it had is replayed", async || numbers(&standby).await == [1, 2]).await;
    assert!(cluster.lag(&standby).await.unwrap().unreceived > 0);
    let twice = cluster.part(&standby).await.unwrap_err();
    assert_eq!(
        twice.to_string(),
        "cannot cut off member 1 of the cluster: that member is a standby that is cut off"
    );

    // Also after a new start.
    cluster.stop(&standby, Stop::Fast).await.unwrap();
    cluster.start_again(&standby).await.unwrap();
    assert_eq!(numbers(&standby).await, [1, 2]);

    cluster.join(&standby).await.unwrap();

    cluster.until_caught_up(&standby).await.unwrap();
    assert_eq!(numbers(&standby).await, [1, 2, 3]);
}

#[tokio::test]
async fn a_standby_that_was_cut_off_lacks_what_came_later_when_it_is_promoted() {
    let mut cluster = Cluster::start().await.unwrap();
    let (old, new) = (cluster.primary(), cluster.standby(0));
    run(&old, "create table t (n int); insert into t values (1)").await.unwrap();
    cluster.part(&new).await.unwrap();
    run(&old, "insert into t values (2)").await.unwrap();

    cluster.promote(&new).await.unwrap();

    assert_eq!(numbers(&new).await, [1]);
}

#[tokio::test]
async fn a_standby_that_has_more_than_the_promoted_one_is_not_taken_for_joined() {
    let mut cluster = Cluster::builder().standbys(2).start().await.unwrap();
    let (old, new, ahead) = (cluster.primary(), cluster.standby(0), cluster.standby(1));
    cluster.part(&new).await.unwrap();
    run(&old, "create table t (n int)").await.unwrap();
    cluster.until_caught_up(&ahead).await.unwrap();
    cluster.stop(&old, Stop::Immediate).await.unwrap();
    cluster.promote(&new).await.unwrap();
    let log = home(&cluster).join("2/log");
    let refusals = || fs::read_to_string(&log).unwrap().matches("before current recovery point").count();

    // Each time, it has received for a moment.
    let refused_often = until("the standby tries again", async || refusals() >= 10);
    tokio::select! {
        joined = cluster.join(&ahead) => panic!("{joined:?}"),
        () = refused_often => {}
    }
}

#[tokio::test]
async fn a_setting_that_stops_a_server_is_in_the_error() {
    let failed = Cluster::builder().setting("max_connections", "50").start().await.unwrap_err();

    assert!(matches!(&failed, Error::ClusterProgram { .. }), "{failed:?}");
    assert!(failed.to_string().contains("max_connections = 50 is a lower setting"), "{failed}");
}

#[tokio::test]
async fn demoting_without_pg_rewind_says_that_the_program_is_missing_and_stops_nothing() {
    let cluster = Cluster::start().await.unwrap();
    let pid = fs::read_to_string(home(&cluster).join("0/data/postmaster.pid")).unwrap();
    let program = fs::read_link(format!("/proc/{}/exe", pid.lines().next().unwrap())).unwrap();
    drop(cluster);
    let folder = open_dir();
    for name in ["postgres", "initdb"] {
        fs::copy(program.with_file_name(name), folder.path().join(name)).unwrap();
    }
    let mut cluster = Cluster::builder().programs(folder.path()).folder(folder.path()).start().await.unwrap();
    let old = cluster.primary();
    cluster.promote(&cluster.standby(0)).await.unwrap();

    let failed = cluster.demote(&old).await.unwrap_err();

    let Error::Server(db_embedded::Error::NoProgram { name: "pg_rewind", folder: named }) = &failed else {
        panic!("{failed:?}");
    };
    assert_eq!(named, folder.path());
    assert!(home(&cluster).starts_with(folder.path()));
    run(&old, "create table t (n int)").await.unwrap();
}

#[tokio::test]
async fn nobody_else_reaches_the_sockets_or_the_data() {
    let cluster = Cluster::start().await.unwrap();

    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    let home = home(&cluster);
    assert_eq!(mode(&home) & 0o007, 0, "{}", home.display());
    assert_eq!(mode(&home.join("run")), 0o700);
    assert_eq!(mode(&home.join("1/data")), 0o700);
}

#[tokio::test]
async fn a_cluster_that_is_dropped_in_a_panic_leaves_no_process_and_no_folder() {
    let (tell, told) = std::sync::mpsc::channel();
    let panicked = tokio::spawn(async move {
        let cluster = Cluster::start().await.unwrap();
        tell.send((home(&cluster), processes_in(&home(&cluster)))).unwrap();
        panic!("as a failing assertion does");
    });
    assert!(panicked.await.unwrap_err().is_panic());

    let (home, processes) = told.recv().unwrap();
    assert!(!home.exists(), "{}", home.display());
    assert!(processes > 2 || cfg!(not(target_os = "linux")), "{processes}");
    assert_eq!(processes_in(&home), 0);
}

/// In a child: starts a cluster, tells its folder, and keeps it until its input ends. In a normal run: nothing.
#[test]
fn holds_a_cluster_when_told_to() {
    if std::env::var_os(ORDER).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let cluster = Cluster::start().await.unwrap();
        writeln!(std::io::stdout(), "\nHOLDS\t{}", home(&cluster).display()).unwrap();
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    });
}

#[tokio::test]
async fn a_test_process_that_is_killed_leaves_no_server_and_no_folder() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["clusters::holds_a_cluster_when_told_to", "--exact", "--nocapture"]).env(ORDER, "yes");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let home = lines.find_map(|line| line.strip_prefix("HOLDS\t").map(PathBuf::from)).unwrap();
    assert!(home.exists());

    child.kill().unwrap();
    child.wait().unwrap();

    until("the folder is gone", async || !home.exists()).await;
    until("the processes are gone", async || processes_in(&home) == 0).await;
}
