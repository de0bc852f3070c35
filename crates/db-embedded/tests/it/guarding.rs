//! Which users may connect.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use db_embedded::{Error, Server};
use nix::unistd::{Uid, User};

use crate::support::{Session, folder_of, is_root, reachable_dir, unique_name};

const ADDRESS: &str = "DB_EMBEDDED_TEST_CONNECT";

/// In a child, as another user: tries to connect and prints the result. In a normal run: nothing.
#[test]
fn connects_when_told_to() {
    let Ok(url) = std::env::var(ADDRESS) else { return };
    match Session::open(&url) {
        Ok(_) => println!("\nCONNECTED"),
        Err(error) => println!("\nREFUSED {error}"),
    }
}

/// What another user sees when it tries to connect. Only root can become another user.
fn as_user(name: &str, program: &Path, url: &str) -> String {
    let user = User::from_name(name).unwrap().unwrap();
    let output = Command::new(program)
        .args(["guarding::connects_when_told_to", "--exact", "--nocapture"])
        .env(ADDRESS, url)
        .current_dir("/")
        .gid(user.gid.as_raw())
        .uid(user.uid.as_raw())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with("CONNECTED") || line.starts_with("REFUSED"));
    line.unwrap_or_else(|| panic!("{output:?}")).to_owned()
}

/// The user that runs the server.
fn owner_of(server: &Server) -> String {
    User::from_uid(Uid::from_raw(server.data_dir().metadata().unwrap().uid())).unwrap().unwrap().name
}

#[test]
fn no_other_user_gets_in_even_through_the_socket() {
    let dir = reachable_dir();
    let server = Server::kept(dir.path().join("pg")).start().unwrap();
    let url = server.url("postgres");
    let socket = server.socket_dir().join(format!(".s.PGSQL.{}", server.port()));
    if !is_root() {
        // Without root we cannot become another user, so the permissions are checked.
        for path in [folder_of(server.data_dir()), server.socket_dir().to_path_buf(), socket.clone()] {
            assert_eq!(path.metadata().unwrap().mode() & 0o077, 0, "{} is open to others", path.display());
        }
        assert!(socket.metadata().unwrap().file_type().is_socket());
        let rules = fs::read_to_string(server.data_dir().join("pg_hba.conf")).unwrap();
        assert_eq!(rules, "local all all peer map=owner\n");
        let us = User::from_uid(Uid::effective()).unwrap().unwrap().name;
        let names = fs::read_to_string(server.data_dir().join("pg_ident.conf")).unwrap();
        assert_eq!(names, format!("owner \"{us}\" postgres\n"));
        server.release().unwrap();
        return;
    }
    let program = dir.path().join("copy-of-this-program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();

    let at_the_folder = as_user("nobody", &program, &url);
    assert!(at_the_folder.contains("Permission denied"), "{at_the_folder}");

    for path in [folder_of(server.data_dir()), server.socket_dir().to_path_buf(), socket] {
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }
    for user in ["nobody", &owner_of(&server)] {
        let at_the_server = as_user(user, &program, &url);
        assert!(at_the_server.contains("Peer authentication failed"), "{user}: {at_the_server}");
    }
    Session::open(&url).unwrap().close();
    server.release().unwrap();
}

#[test]
fn the_servers_own_account_gets_in_when_it_is_to_and_nobody_else() {
    if !is_root() {
        return;
    }
    let dir = reachable_dir();
    let server = Server::kept(dir.path().join("pg")).allow_service_account().start().unwrap();
    let program = dir.path().join("copy-of-this-program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for path in [&program, folder_of(server.data_dir()).as_path(), server.socket_dir()] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let socket = server.socket_dir().join(format!(".s.PGSQL.{}", server.port()));
    fs::set_permissions(socket, Permissions::from_mode(0o777)).unwrap();
    let owner = owner_of(&server);

    let answers = [owner.as_str(), "daemon"].map(|user| as_user(user, &program, &server.url("postgres")));

    assert_eq!(answers[0], "CONNECTED", "{owner}");
    assert!(answers[1].contains("Peer authentication failed"), "{}", answers[1]);
    Session::open(&server.url("postgres")).unwrap().close();
    server.release().unwrap();
}

#[test]
fn a_folder_of_somebody_else_is_refused() {
    let name = unique_name();
    let squatted = std::env::temp_dir().join(format!("db-embedded-{}-{name}", Uid::effective()));
    let refused = if is_root() {
        fs::create_dir(&squatted).unwrap();
        chown(&squatted, Some(54_321), None).unwrap();
        Server::shared(&name).start()
    } else {
        Server::kept("/usr").start()
    };

    match refused {
        Err(Error::NotOurs { why, .. }) => assert!(why.contains("belongs to the user id"), "{why}"),
        other => panic!("{other:?}"),
    }
    if is_root() {
        fs::remove_dir(squatted).unwrap();
    }
}

#[test]
fn a_link_in_the_place_of_a_shared_folder_is_refused() {
    let dir = reachable_dir();
    let name = unique_name();
    let link = std::env::temp_dir().join(format!("db-embedded-{}-{name}", Uid::effective()));
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();

    let refused = Server::shared(&name).start();

    fs::remove_file(link).unwrap();
    assert!(matches!(refused, Err(Error::NotOurs { .. })), "{refused:?}");
}

#[test]
fn a_folder_that_is_used_for_something_else_is_refused_and_left_as_it_was() {
    let dir = reachable_dir();
    fs::write(dir.path().join("thesis.tex"), "").unwrap();

    match Server::kept(dir.path()).start() {
        Err(Error::NotOurs { why, .. }) => assert!(why.contains("thesis.tex"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(dir.path().metadata().unwrap().mode() & 0o777, 0o755);
}

#[test]
fn a_folder_behind_a_closed_one_is_refused_to_root_and_open_to_its_owner() {
    let dir = reachable_dir();
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();

    match Server::kept(closed.join("pg")).start() {
        Err(Error::NotTraversable { ancestor, .. }) if is_root() => {
            assert_eq!(ancestor, fs::canonicalize(&closed).unwrap());
        }
        Ok(server) if !is_root() => drop(server.release().unwrap()),
        other => panic!("{other:?}"),
    }
}
