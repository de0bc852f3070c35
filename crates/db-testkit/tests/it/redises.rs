//! A Redis of a test's own.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use db_testkit::{Redis, until};

/// The answer to a command, of this length.
fn ask(redis: &Redis, command: &str, length: usize) -> std::io::Result<String> {
    let mut socket = UnixStream::connect(redis.socket())?;
    socket.write_all(format!("{command}\r\n").as_bytes())?;
    let mut answer = vec![0; length];
    socket.read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// `T` for a process that is stopped.
fn state(pid: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap()[..1].to_owned()
}

#[tokio::test]
async fn it_is_empty_after_a_restart_at_the_same_address() {
    let redis = Redis::start().await.unwrap();
    let (before, url) = (redis.pid(), redis.url());
    assert_eq!(ask(&redis, "SET word kept", 5).unwrap(), "+OK\r\n");
    assert_eq!(ask(&redis, "GET word", 10).unwrap(), "$4\r\nkept\r\n");

    redis.restart().await.unwrap();

    assert_ne!(redis.pid(), before);
    assert_eq!(redis.url(), url);
    assert_eq!(ask(&redis, "GET word", 5).unwrap(), "$-1\r\n");
}

#[tokio::test]
async fn it_can_be_killed_frozen_and_thawed() {
    let redis = Redis::start().await.unwrap();
    let pid = redis.pid().unwrap();

    redis.freeze().unwrap();
    until("it is stopped", async || state(pid) == "T").await;
    redis.thaw().unwrap();
    assert_eq!(ask(&redis, "PING", 7).unwrap(), "+PONG\r\n");

    redis.freeze().unwrap();
    redis.kill().unwrap();
    assert_eq!(redis.pid(), None);
    assert!(ask(&redis, "PING", 7).is_err());
    assert!(redis.thaw().unwrap_err().to_string().contains("find the process"));
}

#[tokio::test]
async fn nothing_is_left_of_it() {
    let redis = Redis::start().await.unwrap();
    let (pid, folder) = (redis.pid().unwrap(), redis.socket().parent().unwrap().to_owned());

    drop(redis);

    assert!(!folder.exists());
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
}
