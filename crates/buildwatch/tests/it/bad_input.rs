//! Wrong input of users, and unusual output of commands.

use db_testkit::TestDb;

use crate::support::{Home, err, lines, out};

#[test]
fn an_unknown_subcommand_is_said_to_be_one() {
    let output = Home::embedded().output(["fly"]);

    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("unrecognized subcommand 'fly'"), "{}", err(&output));
}

#[db_testkit::test]
async fn a_command_that_is_not_there_fails_the_build_with_a_readable_last_event(db: TestDb) {
    let home = Home::on(&db);
    for (command, code, message) in [
        ("no-such-command", 127, "command not found: no-such-command"),
        ("/no/such/file", 127, "command not found: /no/such/file"),
        ("/etc/passwd", 126, "not executable: /etc/passwd"),
        ("", 127, "command not found: "),
    ] {
        let output = home.output(["run", "--", command]);

        assert_eq!(output.status.code(), Some(code), "{command}");
        assert!(err(&output).ends_with(&format!("buildwatch: {message}\n")), "{}", err(&output));
        let build = home.json(["list", "--json"]).remove(0);
        assert_eq!(
            (build["status"].as_str(), build["exit_code"].as_i64()),
            (Some("failed"), Some(code.into()))
        );
        let last = home.events(build["id"].as_i64().expect("an id")).pop().expect("a last event");
        assert_eq!((last["type"].as_str(), last["data"]["message"].as_str()), (Some("end"), Some(message)));
    }
}

#[db_testkit::test]
async fn output_of_any_kind_comes_out_as_it_went_in(db: TestDb) {
    let home = Home::on(&db);
    let file = home.path("bytes");
    let every_byte: Vec<u8> = (0..=255_u8).cycle().take(200_000).collect();
    let long_line = "x".repeat(10 << 20);
    for (name, bytes) in [
        ("every byte", every_byte),
        ("NULs", b"a\0b\0\n\0".to_vec()),
        ("no UTF-8", b"\xff\xfe\n\xc3\n\xe2\x82\n".to_vec()),
        ("a line of 10 MB", format!("{long_line}\nshort\n").into_bytes()),
        ("no end of line", b"first\nlast".to_vec()),
        ("nothing", Vec::new()),
        ("empty lines", b"\n\n\n".to_vec()),
        ("markup and control", b"<script>alert(1)</script>\x1b[2J\r\n".to_vec()),
    ] {
        std::fs::write(&file, &bytes).expect("written");

        let output = home.output(["run".as_ref(), "--".as_ref(), "cat".as_ref(), file.as_os_str()]);

        assert!(output.stdout == bytes, "{name}: {} bytes instead of {}", output.stdout.len(), bytes.len());
        assert_eq!(output.status.code(), Some(0), "{name}");
    }
    for event in home.events(4) {
        assert!(event.to_string().len() < 100_000, "a long line comes in pieces");
    }
}

#[db_testkit::test]
async fn a_million_lines_come_out_exactly(db: TestDb) {
    let home = Home::on(&db);

    let output = home.run("seq 1 1000000");

    let expected = lines(1_000_000, "");
    assert!(out(&output) == expected, "{} bytes of {}", output.stdout.len(), expected.len());
}

#[db_testkit::test]
async fn a_wrong_database_url_says_which_part_and_never_the_password(db: TestDb) {
    let home = Home::on(&db);
    let good = db.url();
    let nowhere = good.replacen(&format!("/{}", db.name()), "/no_such_database", 1);
    for (url, says) in [
        (
            "mysql://app:hunter2@db/shop",
            "DATABASE_URL cannot be used: the database address must begin with postgres://",
        ),
        (
            "postgres://app:hunter2@db:port/shop",
            "DATABASE_URL cannot be used: the port in the database address",
        ),
        ("postgres://app:hunter2@db", "DATABASE_URL cannot be used: the database address has no database"),
        (
            "postgres://app:hunter2@db/shop?ssl=on",
            "DATABASE_URL cannot be used: the parameter `ssl` in the database address is not supported",
        ),
        (
            "postgres://app:hunter2@/shop?host=",
            "DATABASE_URL cannot be used: the host in the database address is missing",
        ),
        (&nowhere, "there is no database `no_such_database` on this server"),
    ] {
        for args in [&["list"][..], &["run", "--", "true"], &["watch", "1"], &["migrate"]] {
            let output = home.buildwatch(args).env("DATABASE_URL", url).output().expect("it runs");

            let text = err(&output);
            assert!(text.contains(says), "{url}: {text}");
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(!text.contains("hunter2"), "{text}");
            assert_eq!(output.status.code(), Some(if args[0] == "run" { 125 } else { 1 }));
        }
    }
}

#[test]
fn a_server_that_is_not_there_is_named_without_the_password() {
    let home = Home::embedded();
    let mut list = home.buildwatch(["list"]);
    // The whole wait takes 30 s; the test needs only a few refused attempts.
    let waiting = crate::support::Live::new({
        list.env("DATABASE_URL", "postgres://app:hunter2@127.0.0.1:1/shop");
        list
    });

    let line = waiting.error_with("database not reached yet");

    assert!(line.contains("app@127.0.0.1:1/shop") && !line.contains("hunter2"), "{line}");
}

#[test]
fn a_data_folder_that_cannot_be_one_is_named() {
    let home = Home::embedded();
    std::fs::write(home.data(), "a file").expect("written");

    let output = home.output(["list"]);

    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains(&home.data().display().to_string()), "{}", err(&output));
}
