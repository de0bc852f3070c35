//! Starting servers, and what they offer.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Instant;

use db_embedded::{Programs, Released, Server};
use sqlx::migrate::MigrateDatabase;

use crate::support::{ask, expect_no_processes_of, folder_of, is_root, reachable_dir};

#[test]
fn a_throwaway_server_starts_cold_answers_and_leaves_nothing() {
    let begun = Instant::now();
    let server = Server::throwaway().start().unwrap();
    let answer = ask(&server.url("postgres"), "select 'pong'").unwrap();
    println!("cold start to first answer: {:?}", begun.elapsed());

    assert_eq!(answer, "pong");
    let folder = folder_of(server.data_dir());
    assert_eq!(server.release().unwrap(), Released::Stopped);
    assert!(!folder.exists(), "{} is still there after `release`", folder.display());
    expect_no_processes_of(&folder);
}

#[test]
fn a_server_in_memory_lies_there_if_there_is_room_and_leaves_nothing() {
    let memory =
        Programs::find(None).unwrap().memory_folder(2 << 30).filter(|_| std::env::var_os("TMPDIR").is_none());
    let server = Server::throwaway().in_memory().start().unwrap();
    let on_disk = Server::throwaway().start().unwrap();
    let folder = folder_of(server.data_dir());

    assert_eq!(ask(&server.url("postgres"), "select 'pong'").unwrap(), "pong");
    assert_eq!(folder.parent(), memory.as_deref().or(folder_of(on_disk.data_dir()).parent()));

    server.release().unwrap();
    assert!(!folder.exists());
    expect_no_processes_of(&folder);
}

#[test]
fn no_file_system_in_memory_has_room_for_everything() {
    assert_eq!(Programs::find(None).unwrap().memory_folder(u64::MAX), None);
}

#[test]
fn the_address_works_in_psql() {
    let server = Server::throwaway().start().unwrap();

    // psql may be missing; every other test reads the same address by sqlx.
    let Ok(output) =
        Command::new("psql").args(["-XAtc", "select current_user", &server.url("postgres")]).output()
    else {
        return;
    };

    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), server.user(), "{output:?}");
}

#[test]
fn the_address_works_in_the_commands_of_sqlx() {
    let server = Server::throwaway().start().unwrap();
    let url = server.url("made");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();

    // The call of `sqlx database create`.
    runtime.block_on(sqlx::Postgres::create_database(&url)).unwrap();

    assert!(runtime.block_on(sqlx::Postgres::database_exists(&url)).unwrap());
    assert_eq!(ask(&url, "select current_database()::text").unwrap(), "made");
}

#[test]
fn the_getters_tell_what_the_server_says() {
    let server = Server::throwaway().start().unwrap();
    let url = server.url("postgres");

    assert_eq!(ask(&url, "show port").unwrap(), server.port().to_string());
    assert_eq!(ask(&url, "show data_directory").unwrap(), server.data_dir().to_str().unwrap());
    assert!(server.socket_dir().join(format!(".s.PGSQL.{}", server.port())).exists());
    let version = ask(&url, "show server_version").unwrap();
    assert!(version.starts_with(&server.version().to_string()), "{version} is not {}", server.version());
    let pids: Vec<_> = (0..2).map(|_| server.postmaster_pid().unwrap()).collect();
    assert_eq!(pids[0], pids[1]);
}

#[test]
fn nothing_listens_on_tcp() {
    let server = Server::throwaway().start().unwrap();

    assert_eq!(ask(&server.url("postgres"), "show listen_addresses").unwrap(), "");
}

#[test]
fn several_throwaways_run_at_once() {
    let servers: Vec<Server> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..4).map(|_| scope.spawn(|| Server::throwaway().start().unwrap())).collect();
        starting.into_iter().map(|thread| thread.join().unwrap()).collect()
    });

    let mut folders: Vec<_> = servers.iter().map(Server::data_dir).collect();
    folders.dedup();
    assert_eq!(folders.len(), 4);
    for server in &servers {
        let answer = ask(&server.url("postgres"), "show data_directory").unwrap();
        assert_eq!(answer, server.data_dir().to_str().unwrap());
    }
}

#[test]
fn kept_data_survives_and_a_throwaway_saves_the_time_for_that() {
    let dir = reachable_dir();
    let start = || Server::kept(dir.path().join("pg")).start().unwrap();

    let first = start();
    ask(&first.url("postgres"), "create table kept as select 'still here' as word").unwrap();
    assert_eq!(ask(&first.url("postgres"), "show fsync").unwrap(), "on");
    assert_eq!(first.release().unwrap(), Released::Stopped);
    let second = start();

    assert_eq!(ask(&second.url("postgres"), "select word from kept").unwrap(), "still here");
    let log = fs::read_to_string(dir.path().join("pg/log")).unwrap();
    assert!(!log.contains("not properly shut down"), "the first server was not stopped with care: {log}");
    let throwaway = Server::throwaway().start().unwrap();
    assert_eq!(ask(&throwaway.url("postgres"), "show fsync").unwrap(), "off");
    assert_eq!(second.release().unwrap(), Released::Stopped);
    expect_no_processes_of(dir.path());
}

#[test]
fn own_settings_win_over_ours() {
    let server = Server::throwaway().setting("max_connections", "17").setting("fsync", "on").start().unwrap();

    assert_eq!(ask(&server.url("postgres"), "show max_connections").unwrap(), "17");
    assert_eq!(ask(&server.url("postgres"), "show fsync").unwrap(), "on");
}

#[test]
fn a_folder_of_odd_characters_is_as_good_as_any() {
    let dir = reachable_dir();
    let server = Server::kept(dir.path().join("it's, \"a\" b;c%é $HOME")).start().unwrap();

    assert_eq!(ask(&server.url("postgres"), "select 'pong'").unwrap(), "pong");
    assert_eq!(server.release().unwrap(), Released::Stopped);
}

#[test]
fn a_path_too_long_for_a_socket_gets_one_elsewhere() {
    let dir = reachable_dir();
    let start = || Server::kept(dir.path().join("long".repeat(30))).start().unwrap();

    let first = start();
    let second = start();
    assert_eq!(first.socket_dir(), second.socket_dir(), "the second one must learn it from the server");
    let sockets = first.socket_dir().to_path_buf();
    assert!(!sockets.starts_with(dir.path()));
    assert_eq!(sockets.metadata().unwrap().mode() & 0o777, 0o700);
    assert_eq!(ask(&second.url("postgres"), "select 'pong'").unwrap(), "pong");

    assert_eq!(first.release().unwrap(), Released::StillShared);
    assert_eq!(second.release().unwrap(), Released::Stopped);
    assert!(!sockets.exists(), "{} is left behind", sockets.display());
}

#[test]
fn a_half_made_folder_is_made_anew() {
    let dir = reachable_dir();
    let folder = dir.path().join("pg");
    let half = folder.join("data.new-killed");
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("PG_VERSION"), "15\n").unwrap();

    let server = Server::kept(&folder).start().unwrap();

    assert_eq!(ask(&server.url("postgres"), "select 'pong'").unwrap(), "pong");
    assert!(!half.exists(), "what the killed initdb left is still there");
    server.release().unwrap();
}

#[test]
fn the_mark_of_a_dead_server_whose_process_id_lives_again_is_no_obstacle() {
    let dir = reachable_dir();
    let folder = dir.path().join("pg");
    let server = Server::kept(&folder).start().unwrap();
    let mark = fs::read_to_string(server.data_dir().join("postmaster.pid")).unwrap();
    let dead = server.postmaster_pid().unwrap().to_string();
    server.release().unwrap();
    // As after a reboot, with our own process id for the reused one; only /proc shows the difference.
    let mut lived_again = mark.replacen(&dead, &std::process::id().to_string(), 1);
    lived_again.push('\n');
    fs::write(folder.join("data/postmaster.pid"), lived_again).unwrap();

    let server = Server::kept(&folder).start().unwrap();

    assert_eq!(ask(&server.url("postgres"), "select 'pong'").unwrap(), "pong");
    server.release().unwrap();
}

#[test]
fn only_the_account_of_the_server_gets_into_a_kept_folder() {
    let dir = reachable_dir();
    let folder = dir.path().join("pg");
    let server = Server::kept(&folder).start().unwrap();

    let mode = |path: &str| folder.join(path).metadata().unwrap().mode() & 0o7777;
    assert_eq!(mode(""), if is_root() { 0o710 } else { 0o700 });
    assert_eq!((mode("data"), mode("run"), mode("log"), mode("lease")), (0o700, 0o700, 0o600, 0o600));
    let owner = |path: &str| folder.join(path).metadata().unwrap().uid();
    let account = owner("data");
    assert_eq!(is_root(), account != nix::unistd::Uid::effective().as_raw());
    for path in
        ["run", "log", "start", "lease", "running", "version", "data/pg_hba.conf", "data/pg_ident.conf"]
    {
        assert_eq!(owner(path), account, "the owner of {path}");
    }
    assert_eq!(owner(""), nix::unistd::Uid::effective().as_raw());
    server.release().unwrap();
}
