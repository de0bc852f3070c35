//! `buildwatch` without arguments, as a newcomer runs it.

use crate::serving::client;
use crate::support::{Home, processes, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_subcommand_it_serves_runs_one_build_and_says_what_to_do_next() {
    let home = Home::embedded();
    let mut alone = home.start::<&str>([]);
    let first = alone.line();
    let address = first
        .strip_prefix("buildwatch listens on ")
        .unwrap_or_else(|| panic!("{first}"))
        .trim_end_matches('/')
        .to_owned();
    let mut said = String::new();
    while !said.contains("Ctrl-C") {
        said += &alone.line();
    }
    assert!(said.contains(&format!("{address}/builds/1")), "{said}");
    let place = format!("--data {}", home.data().display());
    assert!(said.contains(&format!("{place} run -- ls -l")), "{said}");
    assert!(said.contains(&format!("{place} watch 1")), "{said}");

    let mut stream = client().get(format!("{address}/api/builds/1/events")).send().await.expect("an answer");
    let mut text = String::new();
    while !text.contains("line 1 of 60") {
        text += std::str::from_utf8(&stream.chunk().await.expect("no error").expect("more")).expect("text");
    }
    // A second process finds the server that the first one started.
    assert_eq!(home.json(["list", "--json"])[0]["status"], "running");

    alone.signal("INT");
    assert_eq!(alone.ended().code(), Some(0), "{:?}", alone.errors());
    assert_eq!(home.json(["list", "--json"])[0]["status"], "aborted");
    until("no process is left", || processes(&home.data()).is_empty());
}
