//! The data folder: its files, owners and permissions.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Output;

use db_testkit::TestDb;

use crate::support::{Home, err};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("permissions");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("a file").mode() & 0o7777
}

/// Asserts that a command failed with one line that names a path, and without a panic.
fn is_refused(output: &Output, path: &Path, because: &str) {
    let text = err(output);
    assert_eq!(output.status.code(), Some(1), "{because}: {text}");
    assert!(text.contains(path.to_str().expect("UTF-8")), "{because}: {text}");
    assert!(text.contains(because) && text.lines().count() == 1, "{because}: {text}");
}

#[db_testkit::test]
async fn a_key_that_is_none_is_an_error_that_names_it(db: TestDb) {
    for kind in ["dangling", "loop", "folder", "pipe", "empty", "long", "bytes", "two links"] {
        let home = Home::on(&db);
        fs::create_dir(home.data()).expect("a folder");
        let key = home.data().join("key");
        let because = match kind {
            "dangling" => {
                symlink(home.path("nothing"), &key).expect("a link");
                "symbolic link to"
            }
            "two links" => {
                symlink(home.path("nothing"), home.path("link")).expect("a link");
                symlink(home.path("link"), &key).expect("a link");
                "symbolic link to"
            }
            "loop" => {
                symlink(&key, &key).expect("a link");
                "symbolic links"
            }
            "folder" => {
                fs::create_dir(&key).expect("a folder");
                "it is not a file"
            }
            "pipe" => {
                nix::unistd::mkfifo(&key, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
                "it is not a file"
            }
            other => {
                let (bytes, because): (&[u8], _) = match other {
                    "empty" => (b"", "16 or 32 bytes"),
                    "long" => (&[b'0'; 8 << 10], "too long"),
                    _ => (b"\xff\xfe", "UTF-8"),
                };
                fs::write(&key, bytes).expect("written");
                set_mode(&key, 0o600);
                because
            }
        };

        is_refused(&home.output(["list"]), &key, because);
    }
}

#[db_testkit::test]
async fn a_key_that_others_may_touch_is_refused_and_left_as_it_is(db: TestDb) {
    let home = Home::on(&db);
    assert!(home.output(["list"]).status.success());
    let key = home.data().join("key");
    for given in [0o666, 0o644, 0o620, 0o604] {
        set_mode(&key, given);
        is_refused(&home.output(["list"]), &key, "others may read or write it");
        assert_eq!(mode(&key), given);
    }
    set_mode(&key, 0o400);
    assert!(home.output(["list"]).status.success());
}

#[db_testkit::test]
async fn a_folder_that_others_may_write_to_is_refused_and_left_as_it_is(db: TestDb) {
    let home = Home::on(&db);
    fs::create_dir(home.data()).expect("a folder");
    for given in [0o777, 0o1777, 0o775, 0o702] {
        set_mode(&home.data(), given);
        is_refused(&home.output(["list"]), &home.data(), "others may write to it");
        assert_eq!(mode(&home.data()), given);
        assert_eq!(fs::read_dir(home.data()).expect("the folder").count(), 0, "nothing was put there");
    }
    set_mode(&home.data(), 0o755);
    assert!(home.output(["list"]).status.success());
}

#[db_testkit::test]
async fn a_folder_that_others_could_exchange_is_not_made(db: TestDb) {
    let home = Home::on(&db);
    let above = home.path("above");
    fs::create_dir(&above).expect("a folder");
    set_mode(&above, 0o777);
    let data = above.join("below/data");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_buildwatch"));
    command.arg("--data").arg(&data).arg("list").env("DATABASE_URL", db.url());
    is_refused(&command.output().expect("it runs"), &above, "every user could replace it");
    assert!(!above.join("below").exists());

    set_mode(&above, 0o1777);
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{}", err(&output));
}

#[db_testkit::test]
async fn a_folder_or_a_key_of_another_user_is_refused(db: TestDb) {
    if !nix::unistd::geteuid().is_root() {
        // Only root can change a file's owner.
        return;
    }
    let home = Home::on(&db);
    assert!(home.output(["list"]).status.success());
    let key = home.data().join("key");

    chown(home.data(), Some(65534), None).expect("given away");
    is_refused(&home.output(["list"]), &home.data(), "belongs to the user id 65534");
    chown(home.data(), Some(0), None).expect("taken back");

    chown(&key, Some(65534), None).expect("given away");
    is_refused(&home.output(["list"]), &key, "belongs to the user id 65534");
}

#[test]
fn the_embedded_server_can_pass_through_all_folders_that_are_made() {
    let home = Home::embedded();
    let data = home.path("new/newer/data");
    let list = std::process::Command::new("sh")
        .arg("-c")
        // The umask of a careful root.
        .arg(format!("umask 077; exec {} --data {} list", env!("CARGO_BIN_EXE_buildwatch"), data.display()))
        .env_remove("DATABASE_URL")
        .output()
        .expect("it runs");

    assert!(list.status.success(), "{}", err(&list));
    let expected = if nix::unistd::geteuid().is_root() { 0o711 } else { 0o700 };
    for folder in [&data, data.parent().expect("a folder"), &home.path("new")] as [&Path; 3] {
        assert_eq!(mode(folder), expected, "{}", folder.display());
    }
}

#[test]
fn a_folder_that_the_embedded_server_cannot_reach_keeps_its_mode() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let home = Home::embedded();
    let (above, data) = (home.path("above"), home.path("above/data"));
    fs::create_dir_all(&data).expect("folders");
    set_mode(&above, 0o700);
    set_mode(&data, 0o700);
    let new = above.join("new/data");
    for folder in [&data, &new] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_buildwatch"))
            .arg("--data")
            .arg(folder)
            .arg("list")
            .env_remove("DATABASE_URL")
            .output()
            .expect("it runs");

        is_refused(&output, &above, "cannot pass through");
        assert_eq!((mode(&above), mode(&data)), (0o700, 0o700));
    }
    assert!(!above.join("new").exists(), "it is not made first");
    assert_eq!(fs::read_dir(&data).expect("the folder").count(), 0, "nothing is put there");
}
