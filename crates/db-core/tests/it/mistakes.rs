//! Compile errors that newcomers meet, with their lines. If a message or its line changes, look at it and decide whether it is still
//! understandable, then change this test.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

/// Compiles a file with the libraries beside this test.
fn check(file: &str, libraries: &[(&str, PathBuf)]) -> Output {
    let deps = deps();
    let mut rustc = Command::new(env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned()));
    rustc
        .args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--error-format=short", "-o", "-"])
        .arg(format!("-Ldependency={}", deps.display()));
    for (name, path) in libraries {
        rustc.arg(format!("--extern={name}={}", path.display()));
    }
    rustc.arg(source(file)).output().expect("the compiler runs")
}

fn source(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mistakes").join(file)
}

fn deps() -> PathBuf {
    env::current_exe().expect("this test").parent().expect("its folder").to_owned()
}

/// The libraries of that name, the newest first: each set of features has its own.
fn libraries(name: &str) -> Vec<PathBuf> {
    let prefix = format!("lib{name}-");
    let mut found: Vec<_> = fs::read_dir(deps())
        .expect("libraries")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            file.starts_with(&prefix) && file.ends_with(".rlib")
        })
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.metadata().and_then(|file| file.modified()).ok()));
    found
}

/// The libraries of one build: the correct program compiles with them.
fn of_this_build() -> [(&'static str, PathBuf); 2] {
    let mut stderr = String::new();
    for ours in libraries("db_core") {
        for driver in libraries("sqlx") {
            let libraries = [("db_core", ours.clone()), ("sqlx", driver)];
            let checked = check("right.rs", &libraries);
            if checked.status.success() {
                return libraries;
            }
            stderr = String::from_utf8_lossy(&checked.stderr).into_owned();
        }
    }
    panic!("the correct program does not compile: {stderr}")
}

#[test]
fn ten_common_mistakes_have_the_expected_compile_errors() {
    let libraries = of_this_build();
    let mut count = 0;
    for file in ["types.rs", "borrows.rs"] {
        let checked = check(file, &libraries);
        let stderr = String::from_utf8_lossy(&checked.stderr).into_owned();
        let text = fs::read_to_string(source(file)).expect("a file");
        let expected =
            text.lines().enumerate().filter_map(|(at, line)| Some((at + 1, line.split_once("//~ ")?.1)));
        for (line, error) in expected {
            let place = format!("{file}:{line}:");
            let is_there = stderr.lines().any(|line| line.contains(&place) && line.contains(error));
            assert!(is_there, "{place}: `{error}` is missing:\n{stderr}");
            count += 1;
        }
        // The compiler may report one mistake at several places of a line.
        let mut lines: Vec<_> = stderr
            .lines()
            .filter(|line| line.contains(": error"))
            .map(|line| line.split(':').nth(1).expect("a line"))
            .collect();
        lines.dedup();
        assert_eq!(lines.len(), text.matches("//~ ").count(), "no other errors:\n{stderr}");
    }
    assert_eq!(count, 10);
}
