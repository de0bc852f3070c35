//! A command that prints a key.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::text::LONGEST;

/// How long the command may take.
const LIMIT: Duration = Duration::from_secs(10);

/// How much of its last line on standard error is shown, in characters.
const SHOWN: usize = 200;

/// Runs a command, and returns what it prints.
///
/// Dropping the future ends the command. What it started itself is in its process group, and ends with it.
pub(super) async fn run(line: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    within(LIMIT, line).await
}

async fn within(limit: Duration, line: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let words = shlex::split(line).ok_or("its quotes are not closed")?;
    let (program, arguments) = words.split_first().ok_or("it is empty")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[cfg(unix)]
    command.process_group(0);
    let mut child =
        command.kill_on_drop(true).spawn().map_err(|error| format!("it did not start: {error}"))?;
    let out = child.stdout.take().expect("it is piped");
    let err = child.stderr.take().expect("it is piped");

    let mut group = Group(child.id());
    let mut said = Zeroizing::new(Vec::new());
    let ended = timeout(limit, async {
        let (out, _, status) = tokio::join!(all(out), last(err, &mut said), child.wait());
        (out, status)
    })
    .await;
    let last = last_line(&said);
    let (out, status) = ended.map_err(|_| format!("it did not end within {} s{last}", limit.as_secs()))?;
    group.0 = None;
    let status = status.map_err(|error| format!("it was lost: {error}"))?;
    if !status.success() {
        return Err(format!("it failed, {status}{last}"));
    }
    out.map_err(|error| format!("its output could not be read: {error}"))
}

/// The process group of a command, which ends when this is dropped before the command has ended.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Some(pid) = self.0.and_then(|pid| i32::try_from(pid).ok()) {
            use nix::sys::signal::{Signal, killpg};
            // It may have ended meanwhile.
            killpg(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

/// All that is printed, up to what a key may have. The rest is read and thrown away, so that the command can end.
async fn all(mut from: impl AsyncRead + Unpin) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::with_capacity(usize::try_from(LONGEST).unwrap_or_default()));
    (&mut from).take(LONGEST).read_to_end(&mut text).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(text)
}

/// Keeps the end of what is printed, also when the future is dropped.
async fn last(mut from: impl AsyncRead + Unpin, kept: &mut Vec<u8>) -> std::io::Result<()> {
    let mut piece = [0; 1024];
    loop {
        match from.read(&mut piece).await? {
            0 => return Ok(()),
            count => kept.extend_from_slice(&piece[..count]),
        }
        let too_many = kept.len().saturating_sub(4 * piece.len());
        kept.drain(..too_many);
    }
}

/// The last line on standard error, to end a sentence with.
fn last_line(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    match said.lines().rev().map(str::trim).find(|line| !line.is_empty()) {
        None => String::new(),
        Some(line) => {
            let shown: String = line.chars().filter(|c| !c.is_control()).take(SHOWN).collect();
            format!("; its last line was: {shown}")
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_prints_a_key_or_says_why_not() {
        let key = "000102030405060708090a0b0c0d0e0f";
        assert_eq!(**run(&format!("echo {key}")).await.expect("a key"), *format!("{key}\n").as_bytes());
        assert_eq!(**run("printf %s 'two words'").await.expect("printed"), *b"two words");

        for (line, complaint) in [
            ("", "it is empty"),
            ("echo 'a", "its quotes are not closed"),
            (
                &*format!("sh -c 'echo {key}; echo first >&2; echo \"no such\tkey\" >&2; exit 3'"),
                "it failed, exit status: 3; its last line was: no suchkey",
            ),
            ("false", "it failed, exit status: 1"),
        ] {
            assert_eq!(run(line).await.expect_err("no key"), complaint);
        }
        let missing = run("db-core-no-such-program").await.expect_err("no program");
        assert!(missing.starts_with("it did not start: No such file"), "{missing}");
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_ended_with_what_it_has_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pid");
        let line = format!("sh -c 'sleep 600 & echo $! > {}; echo asking >&2; wait'", file.display());

        let error = within(Duration::from_secs(2), &line).await.expect_err("it hangs");

        assert_eq!(error, "it did not end within 2 s; its last line was: asking");
        let pid = std::fs::read_to_string(&file).expect("it ran");
        // A process that has ended has no open files.
        let files = std::path::Path::new("/proc").join(pid.trim()).join("fd");
        let started = std::time::Instant::now();
        while files.read_dir().is_ok_and(|mut files| files.next().is_some()) {
            assert!(started.elapsed() < Duration::from_secs(20), "{pid} still runs");
            tokio::task::yield_now().await;
        }
    }
}
