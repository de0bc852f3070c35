//! Leases of several processes on one server.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;

use db_embedded::{Released, Server};
use nix::sys::signal::Signal;

use crate::holder::{Holder, Starting};
use crate::support::{
    PATIENCE, Session, ask, expect_gone, expect_no_processes_of, folder_of, reachable_dir, signal,
    supervisor_of, unique_name,
};

#[test]
fn processes_that_give_the_same_name_share_a_server() {
    let name = unique_name();
    let server = Server::shared(&name).start().unwrap();
    let other = Starting::new(&format!("shared {name}")).hold();

    assert_eq!(other.url, server.url("postgres"));
    assert_eq!(u32::try_from(other.postmaster).unwrap(), server.postmaster_pid().unwrap());
    let folder = folder_of(server.data_dir());
    assert_eq!(server.release().unwrap(), Released::StillShared);
    assert_eq!(ask(&other.url, "select 'pong'").unwrap(), "pong");
    assert_eq!(other.release(), "Stopped");
    assert!(!folder.exists());
    expect_no_processes_of(&folder);
}

#[test]
fn two_leases_of_one_process_count_as_two() {
    let name = unique_name();
    let first = Server::shared(&name).start().unwrap();
    let second = Server::shared(&name).start().unwrap();

    drop(first);

    assert_eq!(ask(&second.url("postgres"), "select 'pong'").unwrap(), "pong");
    assert_eq!(second.release().unwrap(), Released::Stopped);
}

#[test]
fn eight_processes_that_start_at_once_end_up_with_one_server() {
    let name = unique_name();
    let starting: Vec<Starting> = (0..8).map(|_| Starting::new(&format!("shared {name}"))).collect();
    let holders: Vec<Holder> = starting.into_iter().map(Starting::hold).collect();

    let mut servers: Vec<i32> = holders.iter().map(|holder| holder.postmaster).collect();
    servers.dedup();
    assert_eq!(servers.len(), 1, "process ids of the servers: {servers:?}");
    let folder = holders[0].folder.clone();
    let outcomes: Vec<String> = holders.into_iter().map(Holder::release).collect();
    assert_eq!(outcomes.last().unwrap(), "Stopped", "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "StillShared").count(), 7, "{outcomes:?}");
    expect_no_processes_of(&folder);
}

#[test]
fn the_starter_may_die_while_another_works() {
    let dir = reachable_dir();
    let folder = dir.path().join("pg");
    let starter = Starting::new(&format!("kept {}", folder.display())).hold();
    let server = Server::kept(&folder).start().unwrap();
    let mut session = Session::open(&server.url("postgres")).unwrap();

    starter.kill();

    assert_eq!(session.ask("select 'go on'").unwrap(), "go on");
    assert_eq!(ask(&server.url("postgres"), "select 'come in'").unwrap(), "come in");
    session.close();
    assert_eq!(server.release().unwrap(), Released::Stopped);
    expect_no_processes_of(&folder);
}

#[test]
fn the_starters_whole_process_group_may_die_as_by_a_closed_terminal() {
    let name = unique_name();
    let starter = Starting::with(&format!("shared {name}"), |command| {
        command.process_group(0);
    })
    .hold();
    let server = Server::shared(&name).start().unwrap();

    starter.kill_group();

    let supervisor = supervisor_of(&folder_of(server.data_dir()));
    for sent_by_terminals in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGTERM] {
        signal(supervisor.pid, sent_by_terminals);
    }
    assert_eq!(ask(&server.url("postgres"), "select 'go on'").unwrap(), "go on");
    assert_eq!(supervisor_of(&folder_of(server.data_dir())).pid, supervisor.pid);
    assert_eq!(server.release().unwrap(), Released::Stopped);
}

#[test]
fn the_server_does_not_keep_its_starters_pipes_open() {
    let name = unique_name();
    let with_a_stray_descriptor = "exec 3>&1; exec \"$0\" \"$@\"";
    let starter = Starting::of("/bin/sh", &format!("shared {name}"), |command| {
        command
            .args([OsStr::new("-c"), OsStr::new(with_a_stray_descriptor)])
            .arg(std::env::current_exe().unwrap());
    })
    .hold();
    let server = Server::shared(&name).start().unwrap();
    let (done, is_done) = std::sync::mpsc::channel();

    std::thread::spawn(move || {
        starter.release_and_read_to_the_end();
        done.send(()).unwrap();
    });

    is_done.recv_timeout(PATIENCE).expect("somebody still has the starter's output open");
    assert_eq!(ask(&server.url("postgres"), "select 'go on'").unwrap(), "go on");
}

#[test]
fn a_user_that_comes_while_the_last_user_leaves_gets_a_server_that_works() {
    let name = unique_name();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let server = Server::shared(&name).start().unwrap();
                    assert_eq!(ask(&server.url("postgres"), "select 'pong'").unwrap(), "pong");
                }
            });
        }
    });

    let last = Server::shared(&name).start().unwrap();
    let folder = folder_of(last.data_dir());
    drop(last);
    expect_gone(&folder);
    expect_no_processes_of(&folder);
}

#[test]
fn a_kept_server_that_is_just_stopping_is_waited_for() {
    let dir = reachable_dir();
    let folder = dir.path().join("pg");
    for round in 0..5 {
        // Dropped, not released: the next round begins while the server stops.
        let server = Server::kept(&folder).start().unwrap();
        assert_eq!(ask(&server.url("postgres"), "select 'pong'").unwrap(), "pong", "round {round}");
    }

    expect_no_processes_of(&folder);
}
