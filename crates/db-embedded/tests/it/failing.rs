//! Failed starts: the error says why, and nothing is left behind.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use db_embedded::{Error, Phase, Server};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::holder::Starting;
use crate::support::{
    PATIENCE, ask, eventually, expect_no_processes_of, is_root, reachable_dir, signal, temp_base,
};

/// The folder of the running server's programs.
fn programs_of(server: &Server) -> std::path::PathBuf {
    let options = fs::read_to_string(server.data_dir().join("postmaster.opts")).unwrap();
    let program = fs::canonicalize(options.split_whitespace().next().unwrap()).unwrap();
    program.parent().unwrap().to_path_buf()
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn a_named_folder_without_programs_is_the_only_place_looked_at() {
    let base = temp_base();
    match Server::throwaway().binaries("/nonexistent").start() {
        Err(error @ Error::NoBinaries { .. }) => {
            let Error::NoBinaries { search } = &error else { unreachable!() };
            assert_eq!(search.folders().collect::<Vec<_>>(), [Path::new("/nonexistent")]);
            let text = error.to_string();
            assert!(text.contains("/nonexistent (no postgres)") && text.contains("DATABASE_URL"), "{text}");
            assert!(text.lines().count() <= 3, "{text}");
        }
        other => panic!("{other:?}"),
    }

    let failed = Starting::with("throwaway", |command| {
        command.env("DB_EMBEDDED_PGBIN", "/nonexistent/too").env("TMPDIR", base.path());
    })
    .outcome()
    .err()
    .expect("a wrong DB_EMBEDDED_PGBIN must be an error");
    assert!(failed.debug.contains("NoBinaries") && failed.display.contains("/nonexistent/too"), "{failed:?}");
    assert!(!failed.display.contains("/usr/lib"), "{failed:?}");
    assert!(is_empty(base.path()), "the failed start left something in {}", base.path().display());
}

#[test]
fn data_of_another_major_version_is_left_alone() {
    let dir = reachable_dir();
    let data = dir.path().join("pg/data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("PG_VERSION"), "9\n").unwrap();

    match Server::kept(dir.path().join("pg")).start() {
        Err(error @ Error::WrongMajor { .. }) => {
            let text = error.to_string();
            assert!(text.contains("made by PostgreSQL 9, but only"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read_to_string(data.join("PG_VERSION")).unwrap(), "9\n");
}

#[test]
fn data_that_another_server_runs_on_is_left_alone() {
    let dir = reachable_dir();
    let folder = dir.path().join("pg");
    let server = Server::kept(&folder).start().unwrap();
    let (programs, data) = (programs_of(&server), server.data_dir().to_path_buf());
    let owner = data.metadata().unwrap();
    server.release().unwrap();
    let mut command = Command::new(programs.join("postgres"));
    let sockets = temp_base();
    let socket_setting = format!("unix_socket_directories={}", sockets.path().display());
    command.arg("-D").arg(&data).args(["-c", "listen_addresses=", "-c", &socket_setting]);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if is_root() {
        command.gid(owner.gid()).uid(owner.uid());
    }
    let mut foreign = command.spawn().unwrap();
    let has_socket = || sockets.path().join(".s.PGSQL.5432").exists();
    eventually("the other server has a socket", has_socket, || format!("{:?}", sockets.path()));

    let refused = Server::kept(&folder).start_timeout(PATIENCE).start();

    signal(i32::try_from(foreign.id()).unwrap(), Signal::SIGINT);
    foreign.wait().unwrap();
    match refused {
        Err(Error::InUse { folder, pid }) => assert_eq!((folder, pid), (data, foreign.id())),
        other => panic!("{other:?}"),
    }
    let server = Server::kept(&folder).start().unwrap();
    assert_eq!(ask(&server.url("postgres"), "select 'pong'").unwrap(), "pong");
    server.release().unwrap();
}

/// A file system of 24 MB, less than fresh data takes, mounted while the value lives.
struct TinyDisk(TempDir);

impl TinyDisk {
    /// `None` if we may not mount.
    fn mount() -> Option<TinyDisk> {
        let dir = reachable_dir();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=24m,mode=0755", "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then(|| TinyDisk(dir))
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_called_by_its_name() {
    let dir = reachable_dir();
    let failed = if let Some(disk) = TinyDisk::mount() {
        let failed = Starting::new(&format!("kept {}", disk.0.path().join("pg").display())).outcome().err();
        expect_no_processes_of(disk.0.path());
        failed
    } else {
        // Without mounting, a limit on the size of files stops the first WAL segment midway.
        let limited = "ulimit -f 16384; exec \"$0\" \"$@\"";
        let failed =
            Starting::of("/bin/sh", &format!("kept {}", dir.path().join("pg").display()), |command| {
                command.args([OsStr::new("-c"), OsStr::new(limited)]).arg(std::env::current_exe().unwrap());
            });
        failed.outcome().err()
    };

    let failed = failed.expect("there is no room for a server");
    assert!(failed.debug.starts_with("DiskFull"), "{failed:?}");
    assert!(
        failed.display.contains("No space left") || failed.display.contains("File too large"),
        "{failed:?}"
    );
}

#[test]
fn a_setting_that_the_server_refuses_fails_at_once_and_shows_the_log() {
    let dir = reachable_dir();
    let folder = dir.path().join("pg");
    match Server::kept(&folder).setting("max_connections", "many").start() {
        Err(Error::StartFailed { log, .. }) => {
            assert_eq!(log.matches("invalid value for parameter \"max_connections\"").count(), 1, "{log}");
        }
        other => panic!("{other:?}"),
    }
    expect_no_processes_of(&folder);

    let server = Server::kept(&folder).start().unwrap();
    assert_eq!(ask(&server.url("postgres"), "select 'pong'").unwrap(), "pong");
    server.release().unwrap();
}

#[test]
fn a_start_that_takes_too_long_says_what_it_waited_for_and_leaves_nothing() {
    let dir = reachable_dir();
    let folder = dir.path().join("pg");
    match Server::kept(&folder).start_timeout(Duration::from_millis(1)).start() {
        Err(error @ Error::TimedOut { phase: Phase::InitDb, .. }) => {
            assert!(error.to_string().contains("initdb to make the data folder"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    expect_no_processes_of(&folder);
}

#[test]
fn a_name_that_is_no_file_name_is_refused() {
    for name in ["", "../up", "Upper", "a b", "0123456789012345678901234567890123"] {
        let refused = Server::shared(name).start();
        assert!(matches!(refused, Err(Error::InvalidName { .. })), "{name:?}: {refused:?}");
    }
}

/// A `PATH` with only these programs.
fn path_of(programs: &[&str]) -> TempDir {
    let dir = reachable_dir();
    let path = std::env::var_os("PATH").unwrap();
    for program in programs {
        let found =
            std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.exists());
        symlink(found.unwrap_or_else(|| panic!("no {program}")), dir.path().join(program)).unwrap();
    }
    dir
}

const NEEDED: [&str; 4] = ["date", "mv", "rm", "sleep"];

#[test]
fn perl_takes_the_locks_where_flock_is_missing() {
    let programs = programs_of(&Server::throwaway().start().unwrap());
    let path = path_of(&[&NEEDED[..], &["perl"]].concat());
    let holder = Starting::with("throwaway", |command| {
        command.env("PATH", path.path()).env("DB_EMBEDDED_PGBIN", &programs);
    })
    .hold();
    let folder = holder.folder.clone();
    assert_eq!(ask(&holder.url, "select 'pong'").unwrap(), "pong");

    assert_eq!(holder.release(), "Stopped");

    assert!(!folder.exists());
    expect_no_processes_of(&folder);
}

#[test]
fn without_a_program_that_takes_locks_nothing_is_started() {
    let programs = programs_of(&Server::throwaway().start().unwrap());
    let base = temp_base();
    let path = path_of(&NEEDED);

    let failed = Starting::with("throwaway", |command| {
        command.env("PATH", path.path()).env("DB_EMBEDDED_PGBIN", &programs).env("TMPDIR", base.path());
    })
    .outcome()
    .err()
    .expect("nothing can take locks");

    assert_eq!(failed.debug, "NoLockTool");
    assert!(is_empty(base.path()));
}
