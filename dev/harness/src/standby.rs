//! A primary and its standby, on this machine and for one test.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use db_embedded::Server;
use db_testkit::until;
use sqlx::{Connection, PgConnection};

/// The port of the primary, and the standby's port until it takes over. Ports only name the sockets, which are in the pair's
/// own folder.
const KNOWN: u16 = 5432;
const HIDDEN: u16 = 5433;

/// A primary, `a`, and its standby, `b`. On drop they are stopped and their data is removed.
///
/// The methods panic if a server fails.
#[derive(Debug)]
pub struct Pair {
    folder: tempfile::TempDir,
    programs: PathBuf,
    /// The account that runs PostgreSQL if this process is root: PostgreSQL refuses to run as root.
    account: Option<(u32, u32)>,
    running: Vec<&'static str>,
}

impl Pair {
    /// Starts both servers.
    ///
    /// # Panics
    ///
    /// If a program of PostgreSQL fails.
    pub async fn start() -> Self {
        blocking(Self::start_now).await
    }

    fn start_now() -> Self {
        let found = Server::throwaway().start().expect("a server, to find its programs");
        let programs = program(&found);
        found.release().expect("released");
        let folder = tempfile::tempdir().expect("a folder");
        let account = account(folder.path());
        let mut pair = Self { folder, programs, account, running: Vec::new() };
        let (a, b) = (pair.data("a"), pair.data("b"));
        pair.run(
            "initdb",
            &["-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C", "-D", text(&a)],
        );
        // Instead of `pg_basebackup`, which not every package has.
        let copied = Command::new("cp").arg("-a").args([&a, &b]).status().expect("`cp` is on the PATH");
        assert!(copied.success(), "the standby's data is not copied");
        let settings = |port| {
            format!(
                "listen_addresses = ''\nunix_socket_directories = '{}'\nport = {port}\nfsync = off\n\
                 wal_level = replica\nmax_connections = 100\n",
                pair.folder.path().display()
            )
        };
        let primary = settings(KNOWN);
        let standby = format!(
            "{}primary_conninfo = 'host={} port={KNOWN} user=postgres'\n",
            settings(HIDDEN),
            pair.folder.path().display()
        );
        pair.append(&a.join("postgresql.conf"), &primary);
        pair.control("a", "start", &[]);
        pair.append(&b.join("postgresql.conf"), &standby);
        pair.append(&b.join("standby.signal"), "");
        pair.control("b", "start", &[]);
        pair
    }

    /// The address of the primary, also after [`fail_over`](Self::fail_over).
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(KNOWN)
    }

    /// The address of the standby, until it takes the primary's.
    #[must_use]
    pub fn standby_url(&self) -> String {
        self.url_of(HIDDEN)
    }

    fn url_of(&self, port: u16) -> String {
        let folder = text(self.folder.path()).replace('/', "%2F");
        format!("postgres://postgres@{folder}:{port}/postgres")
    }

    /// Waits until the standby has received everything, and then stops replication.
    ///
    /// # Panics
    ///
    /// If a server does not answer, or if it takes longer than 20 s.
    pub async fn part(&self) {
        let mut primary = self.connect(KNOWN).await;
        let mut standby = self.connect(HIDDEN).await;
        let end: String = sqlx::query_scalar("select pg_current_wal_lsn()::text")
            .fetch_one(&mut primary)
            .await
            .expect("where the primary is");
        until("the standby has all of it", async || {
            let mut standby = self.connect(HIDDEN).await;
            let has = "select pg_last_wal_replay_lsn() >= $1::pg_lsn";
            sqlx::query_scalar::<_, bool>(has)
                .bind(&end)
                .fetch_one(&mut standby)
                .await
                .expect("how far it is")
        })
        .await;
        for sql in ["alter system set primary_conninfo = ''", "select pg_reload_conf()"] {
            sqlx::query(sql).execute(&mut standby).await.expect("set");
        }
        until("nobody receives", async || {
            let mut primary = self.connect(KNOWN).await;
            let count = "select count(*) from pg_stat_replication";
            sqlx::query_scalar::<_, i64>(count).fetch_one(&mut primary).await.expect("a count") == 0
        })
        .await;
    }

    /// Stops the primary, and promotes the standby at the same address.
    ///
    /// # Panics
    ///
    /// If a server fails.
    pub async fn fail_over(self) -> Self {
        blocking(move || {
            let mut pair = self;
            pair.control("a", "stop", &["-m", "immediate"]);
            pair.control("b", "stop", &["-m", "fast"]);
            pair.append(&pair.data("b").join("postgresql.conf"), &format!("port = {KNOWN}\n"));
            pair.control("b", "start", &[]);
            pair.control("b", "promote", &[]);
            pair
        })
        .await
    }

    /// The standby becomes the primary, and the primary its standby. Each keeps its address.
    ///
    /// # Panics
    ///
    /// If a server fails.
    pub async fn switch_over(self) -> Self {
        blocking(move || {
            let mut pair = self;
            // It ends only after the standby has received everything.
            pair.control("a", "stop", &["-m", "fast"]);
            pair.control("b", "promote", &[]);
            let data = pair.data("a");
            let follows = format!(
                "primary_conninfo = 'host={} port={HIDDEN} user=postgres'\n",
                text(pair.folder.path())
            );
            pair.append(&data.join("postgresql.conf"), &follows);
            pair.append(&data.join("standby.signal"), "");
            pair.control("a", "start", &[]);
            pair
        })
        .await
    }

    async fn connect(&self, port: u16) -> PgConnection {
        PgConnection::connect(&self.url_of(port)).await.expect("a connection")
    }

    fn data(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn append(&self, file: &Path, text: &str) {
        let there = std::fs::read_to_string(file).unwrap_or_default();
        std::fs::write(file, there + text).expect("written");
        if let Some((user, group)) = self.account {
            chown(file, Some(user), Some(group)).expect("given to its account");
        }
    }

    fn control(&mut self, name: &'static str, order: &str, more: &[&str]) {
        let (data, log) = (self.data(name), self.folder.path().join(format!("{name}.log")));
        let mut arguments = vec!["-D", text(&data), "-l", text(&log), "-w", "-t", "60"];
        arguments.extend(more);
        arguments.push(order);
        self.run("pg_ctl", &arguments);
        match order {
            "start" => self.running.push(name),
            "stop" => self.running.retain(|running| *running != name),
            _ => {}
        }
    }

    fn run(&self, name: &str, arguments: &[&str]) {
        let output = self.command(name, arguments).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name} {arguments:?}: {said}");
    }

    fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.args(arguments).current_dir("/").env_clear().env("LC_ALL", "C").env("PATH", &self.programs);
        // The server that `pg_ctl` starts would inherit the pipes, and nobody waits for its end.
        command.stdin(Stdio::null());
        if name == "pg_ctl" {
            command.stdout(Stdio::null());
        }
        if let Some((user, group)) = self.account {
            command.gid(group).uid(user);
        }
        command
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in std::mem::take(&mut self.running) {
            let data = self.data(name);
            let arguments = ["-D", text(&data), "-m", "immediate", "-w", "-t", "60", "stop"];
            // It may have ended already.
            self.command("pg_ctl", &arguments).stderr(Stdio::null()).status().ok();
        }
    }
}

/// The folder of a running server's programs.
fn program(server: &Server) -> PathBuf {
    let pid = server.postmaster_pid().expect("it runs");
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).expect("its program");
    program.parent().expect("a folder").to_owned()
}

/// The account to run PostgreSQL as, which then owns the folder; `None` if it can run as this user.
fn account(folder: &Path) -> Option<(u32, u32)> {
    let number = |which: &str, name: &str| -> u32 {
        let output = Command::new("id").args([which, name]).output().expect("`id` is on the PATH");
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
    };
    let us = Command::new("id").arg("-u").output().expect("`id` is on the PATH");
    if us.stdout.trim_ascii() != b"0" {
        return None;
    }
    let (user, group) = (number("-u", "postgres"), number("-g", "postgres"));
    chown(folder, Some(user), Some(group)).expect("given to its account");
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).expect("permissions");
    Some((user, group))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

async fn blocking<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(what).await.expect("no panic")
}
