//! Each process involved is killed, and nothing stays behind.

use std::fs;
use std::path::Path;
use std::time::Duration;

use db_embedded::{Released, Server};

use crate::holder::Starting;
use crate::support::{
    Session, ask, eventually, expect_gone, expect_no_processes_of, folder_of, processes_of, reachable_dir,
    signal, supervisor_of, temp_base, unique_name, waiter_of,
};

use nix::sys::signal::Signal;

#[test]
fn a_killed_holder_takes_its_server_and_folder_with_it() {
    let holder = Starting::new("throwaway").hold();
    let folder = holder.folder.clone();
    assert_eq!(ask(&holder.url, "select 'pong'").unwrap(), "pong");

    holder.kill();

    expect_gone(&folder);
    expect_no_processes_of(&folder);
}

#[test]
fn a_starter_killed_at_any_point_leaves_nothing() {
    let base = temp_base();
    std::thread::scope(|scope| {
        for moment in 0..12 {
            let base = base.path();
            scope.spawn(move || {
                let starting = Starting::with("throwaway", |command| {
                    command.env("TMPDIR", base);
                });
                // It chooses the moment of the kill, between the first folder and the finished server.
                #[expect(clippy::disallowed_methods, reason = "it chooses the moment of a kill")]
                std::thread::sleep(Duration::from_millis(moment * 70));
                starting.kill();
            });
        }
    });

    expect_no_processes_of(base.path());
    // A process killed right after it made the folder leaves that folder to the next starter.
    let next = Starting::with("throwaway", |command| {
        command.env("TMPDIR", base.path());
    });
    assert_eq!(next.hold().release(), "Stopped");
    let left: Vec<_> = fs::read_dir(base.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn a_starter_killed_while_the_data_is_made_leaves_no_folder() {
    let base = temp_base();
    let starting = Starting::with("throwaway", |command| {
        command.env("TMPDIR", base.path());
    });
    let entries = |folder: &Path| {
        fs::read_dir(folder).into_iter().flatten().flatten().map(|it| it.path()).collect::<Vec<_>>()
    };
    let half_made = || {
        let folders = entries(base.path());
        // initdb's first file must exist, and not only the folder.
        folders
            .iter()
            .flat_map(|it| entries(it))
            .any(|it| it.to_string_lossy().contains("data.new-") && !entries(&it).is_empty())
    };
    eventually("initdb is at work", half_made, || format!("{:?}", entries(base.path())));

    starting.kill();

    eventually(
        "nothing is left",
        || entries(base.path()).is_empty(),
        || format!("{:?}", entries(base.path())),
    );
    expect_no_processes_of(base.path());
}

#[test]
fn a_server_that_keeps_dying_is_given_up_and_the_next_start_begins_anew() {
    let name = unique_name();
    let server = Server::shared(&name).start().unwrap();
    let folder = folder_of(server.data_dir());
    let supervisor = supervisor_of(&folder);

    let gave_up = || {
        if let Ok(pid) = server.postmaster_pid() {
            signal(i32::try_from(pid).unwrap(), Signal::SIGKILL);
        }
        processes_of(&folder).iter().all(|process| process.pid != supervisor.pid)
    };
    eventually("the supervisor gives up", gave_up, || format!("{:#?}", processes_of(&folder)));
    assert!(server.postmaster_pid().is_err());
    let log = fs::read_to_string(folder.join("log")).unwrap();
    assert!(log.contains("giving up"), "{log}");

    let newcomer = Server::shared(&name).start().unwrap();
    assert_eq!(ask(&server.url("postgres"), "select 'pong'").unwrap(), "pong");
    assert_eq!(newcomer.release().unwrap(), Released::StillShared);
    assert_eq!(server.release().unwrap(), Released::Stopped);
    assert!(!folder.exists());
}

#[test]
fn a_killed_supervisor_is_replaced_and_nobody_loses_a_connection() {
    let name = unique_name();
    let server = Server::shared(&name).start().unwrap();
    let folder = folder_of(server.data_dir());
    let postmaster = server.postmaster_pid().unwrap();
    let mut session = Session::open(&server.url("postgres")).unwrap();
    let killed = supervisor_of(&folder);

    killed.kill();
    eventually(
        "the supervisor is gone",
        || !Path::new(&format!("/proc/{}", killed.pid)).exists(),
        String::new,
    );
    let newcomer = Server::shared(&name).start().unwrap();

    assert_eq!(newcomer.postmaster_pid().unwrap(), postmaster, "the server was not adopted");
    assert_ne!(supervisor_of(&folder).pid, killed.pid);
    assert_eq!(session.ask("select 'go on'").unwrap(), "go on");
    session.close();
    assert_eq!(server.release().unwrap(), Released::StillShared);
    assert_eq!(newcomer.release().unwrap(), Released::Stopped);
    assert!(!folder.exists());
    expect_no_processes_of(&folder);
}

#[test]
fn a_killed_supervisor_takes_its_waiter_with_it() {
    let server = Server::throwaway().start().unwrap();
    let folder = folder_of(server.data_dir());
    eventually(
        "a process waits for the lease",
        || waiter_of(&folder).is_some(),
        || format!("{:#?}", processes_of(&folder)),
    );

    supervisor_of(&folder).kill();

    let others = || {
        let of_the_server = |command: &str| command.contains("postgres");
        processes_of(&folder)
            .into_iter()
            .filter(|process| !of_the_server(&process.command))
            .collect::<Vec<_>>()
    };
    eventually("only the server is left", || others().is_empty(), || format!("{:#?}", others()));
    assert_eq!(
        server.release().unwrap(),
        Released::Stopped,
        "whoever releases the last lease has to finish the job"
    );
    assert!(!folder.exists());
    expect_no_processes_of(&folder);
}

#[test]
fn a_killed_waiter_does_not_stop_the_end_from_coming() {
    let server = Server::throwaway().start().unwrap();
    let folder = folder_of(server.data_dir());
    for _ in 0..3 {
        eventually(
            "a process waits for the lease",
            || waiter_of(&folder).is_some(),
            || format!("{:#?}", processes_of(&folder)),
        );
        if let Some(waiter) = waiter_of(&folder) {
            waiter.kill();
        }
    }
    assert_eq!(ask(&server.url("postgres"), "select 'pong'").unwrap(), "pong");

    drop(server);

    expect_gone(&folder);
    expect_no_processes_of(&folder);
}

#[test]
fn a_killed_server_is_started_again_with_its_data() {
    let dir = reachable_dir();
    let server = Server::kept(dir.path().join("pg")).start().unwrap();
    let url = server.url("postgres");
    ask(&url, "create table kept as select 'still here' as word").unwrap();
    let killed = server.postmaster_pid().unwrap();

    signal(i32::try_from(killed).unwrap(), Signal::SIGKILL);

    eventually(
        "the server answers again",
        || ask(&url, "select word from kept").is_ok_and(|word| word == "still here"),
        || format!("{:?}", ask(&url, "select word from kept")),
    );
    assert_ne!(server.postmaster_pid().unwrap(), killed);
    assert_eq!(server.release().unwrap(), Released::Stopped);
    expect_no_processes_of(dir.path());
}

#[test]
fn a_server_that_was_told_to_stop_is_started_again_while_leases_are_held() {
    let server = Server::throwaway().start().unwrap();
    for how in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let told = server.postmaster_pid().unwrap();

        signal(i32::try_from(told).unwrap(), how);

        let revived = || {
            server.postmaster_pid().is_ok_and(|pid| pid != told)
                && ask(&server.url("postgres"), "select 'pong'").is_ok()
        };
        eventually(&format!("the server answers again after {how}"), revived, || {
            format!("{:?}", server.postmaster_pid())
        });
    }
}

#[test]
fn an_adopted_server_is_started_again_too() {
    let name = unique_name();
    let server = Server::shared(&name).start().unwrap();
    let folder = folder_of(server.data_dir());
    let killed = server.postmaster_pid().unwrap();
    let supervisor = supervisor_of(&folder);
    supervisor.kill();
    eventually(
        "the supervisor is gone",
        || processes_of(&folder).iter().all(|it| it.pid != supervisor.pid),
        String::new,
    );
    let newcomer = Server::shared(&name).start().unwrap();

    signal(i32::try_from(killed).unwrap(), Signal::SIGKILL);

    let url = newcomer.url("postgres");
    eventually(
        "the server answers again",
        || ask(&url, "select 'pong'").is_ok(),
        || format!("{:?}", ask(&url, "select 1")),
    );
    assert_ne!(newcomer.postmaster_pid().unwrap(), killed);
}

#[test]
fn the_next_throwaway_sweeps_the_remains_of_a_killed_supervisor_and_server() {
    let base = temp_base();
    let hold = || {
        Starting::with("throwaway", |command| {
            command.env("TMPDIR", base.path());
        })
        .hold()
    };
    let holder = hold();
    let folder = holder.folder.clone();
    supervisor_of(&folder).kill();
    eventually("no supervisor", || waiter_of(&folder).is_none(), String::new);
    holder.kill();
    assert!(folder.exists() && !processes_of(&folder).is_empty(), "the server has no supervisor and runs on");

    assert_eq!(hold().release(), "Stopped");

    expect_gone(&folder);
    expect_no_processes_of(&folder);
}

#[test]
fn lock_files_that_a_killed_server_left_empty_do_not_stand_in_the_way() {
    let dir = reachable_dir();
    let start = || Server::kept(dir.path().join("pg")).start().unwrap();
    let first = start();
    let sockets = first.socket_dir().to_owned();
    let data = first.data_dir().to_owned();
    assert_eq!(first.release().unwrap(), Released::Stopped);

    // Stands for a server that was killed between making the files and writing into them.
    fs::write(data.join("postmaster.pid"), "").unwrap();
    fs::write(sockets.join(".s.PGSQL.5432.lock"), "").unwrap();

    let second = start();
    assert_eq!(ask(&second.url("postgres"), "select 'pong'").unwrap(), "pong");
    assert_eq!(second.release().unwrap(), Released::Stopped);
}

#[test]
fn a_folder_whose_maker_was_killed_before_it_gave_it_away_is_swept() {
    let base = temp_base();
    let left = base.path().join(format!("db-embedded-{}-private.abandoned", nix::unistd::geteuid()));
    fs::create_dir(&left).unwrap();

    let next = Starting::with("throwaway", |command| {
        command.env("TMPDIR", base.path());
    });

    assert_eq!(next.hold().release(), "Stopped");
    assert!(!left.exists());
}
