//! Lines through `buildwatch run`, beside `psql` copying them into a table.
//!
//! The same program writes the lines into a pipe for both. Both are timed from their first read until the last line was printed, or
//! until psql reports the number of copied rows. The server is running already and stores durably.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use db_embedded::Server;

use crate::report::{Report, Row};

/// The capacity of a pipe on Linux.
const PIPE: usize = 64 << 10;

pub(crate) fn measure(lines: u32, rounds: usize) -> anyhow::Result<Report> {
    let bench = Bench::new(lines)?;
    bench.ours().context("warm-up of buildwatch run")?;
    bench.peer().context("warm-up of psql")?;
    let mut measured = Vec::new();
    for round in 0..rounds {
        // The order alternates, since the first of a round finds the caches and the log in another state.
        let (ours, peer) = if round % 2 == 0 {
            let ours = bench.ours()?;
            (ours, bench.peer()?)
        } else {
            let peer = bench.peer()?;
            (bench.ours()?, peer)
        };
        let rate = |time: Duration| f64::from(lines) / time.as_secs_f64();
        measured.push((rate(ours), rate(peer)));
    }
    Ok(Report {
        server: format!("a kept server, PostgreSQL {}", bench.server.version()),
        arms: Vec::new(),
        rows: vec![Row::new("run.vs_copy", "lines/s", &measured)],
    })
}

/// Writes a file to stdout, and the time of the first read to another file. A full pipe shows that no byte has been read.
pub(crate) fn emit(file: &Path, stamp: &Path) -> anyhow::Result<()> {
    let bytes = fs::read(file)?;
    let mut out = std::io::stdout();
    let (first, rest) = bytes.split_at(bytes.len().min(PIPE));
    out.write_all(first)?;
    let (next, rest) = rest.split_at(rest.len().min(4096));
    out.write_all(next)?;
    out.flush()?;
    let now = SystemTime::now();
    out.write_all(rest)?;
    out.flush()?;
    fs::write(stamp, now.duration_since(SystemTime::UNIX_EPOCH)?.as_nanos().to_string())?;
    Ok(())
}

struct Bench {
    folder: tempfile::TempDir,
    server: Server,
    buildwatch: PathBuf,
    myself: PathBuf,
    lines: u32,
    text: Vec<u8>,
}

impl Bench {
    fn new(lines: u32) -> anyhow::Result<Self> {
        let myself = std::env::current_exe()?;
        let buildwatch = myself.with_file_name("buildwatch");
        ensure!(buildwatch.exists(), "build it first: cargo build --release -p buildwatch -p bench");

        let folder = tempfile::tempdir()?;
        let text = (1..=lines).fold(String::new(), |mut text, n| {
            writeln!(text, "line {n}").expect("writing to a string");
            text
        });
        ensure!(
            text.len() > 2 * PIPE,
            "too few lines: they fit into a pipe, so the time of the first read is unknown"
        );
        fs::write(folder.path().join("lines"), &text)?;

        // Creates the folder and its database; then the server keeps running for all rounds.
        let data = folder.path().join("data");
        let made = Command::new(&buildwatch)
            .arg("--data")
            .arg(&data)
            .arg("list")
            .env_remove("DATABASE_URL")
            .output()?;
        ensure!(made.status.success(), "buildwatch list: {}", String::from_utf8_lossy(&made.stderr));
        let server = Server::kept(data.join("postgres")).start()?;
        Ok(Self { folder, server, buildwatch, myself, lines, text: text.into_bytes() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// From the first byte that `buildwatch run` read to the last line that it printed.
    fn ours(&self) -> anyhow::Result<Duration> {
        let mut run = Command::new(&self.buildwatch)
            .arg("--data")
            .arg(self.path("data"))
            .args(["run", "--"])
            .args([&self.myself, Path::new("emit"), &self.path("lines"), &self.path("stamp")])
            .env_remove("DATABASE_URL")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut printed = Vec::with_capacity(self.text.len());
        let mut out = run.stdout.take().context("piped stdout")?;
        let mut buffer = vec![0; 1 << 20];
        let end = loop {
            let read = out.read(&mut buffer)?;
            ensure!(read > 0, "buildwatch run ended after {} of {} bytes", printed.len(), self.text.len());
            printed.extend_from_slice(&buffer[..read]);
            if printed.len() >= self.text.len() {
                break SystemTime::now();
            }
        };
        out.read_to_end(&mut printed)?;
        ensure!(run.wait()?.success(), "buildwatch run failed");
        ensure!(printed == self.text, "buildwatch run printed something else");
        self.since_stamp(end)
    }

    /// From the first byte that psql read to its report of the copied rows.
    fn peer(&self) -> anyhow::Result<Duration> {
        let url = self.server.url("buildwatch");
        let psql = |sql: &str| -> Command {
            let mut psql = Command::new("psql");
            psql.args(["--no-psqlrc", &url, "-v", "ON_ERROR_STOP=1", "-c", sql]);
            psql
        };
        let made =
            psql("create table if not exists bench_lines (line text)").stderr(Stdio::null()).output()?;
        ensure!(made.status.success(), "psql cannot create a table");

        let mut emit = Command::new(&self.myself)
            .arg("emit")
            .args([self.path("lines"), self.path("stamp")])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut copy = psql("\\copy bench_lines from stdin")
            .stdin(emit.stdout.take().context("piped stdout")?)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = vec![0; 100];
        let read = copy.stdout.take().context("piped stdout")?.read(&mut said)?;
        let end = SystemTime::now();
        finish(&mut copy, "psql")?;
        finish(&mut emit, "emit")?;
        let said = String::from_utf8_lossy(&said[..read]).into_owned();
        if said.trim() != format!("COPY {}", self.lines) {
            bail!("psql printed: {said}");
        }
        self.since_stamp(end)
    }

    fn since_stamp(&self, end: SystemTime) -> anyhow::Result<Duration> {
        let mut text = String::new();
        File::open(self.path("stamp"))?.read_to_string(&mut text)?;
        let begin = SystemTime::UNIX_EPOCH + Duration::from_nanos(text.trim().parse()?);
        Ok(end.duration_since(begin)?)
    }
}

fn finish(child: &mut Child, name: &str) -> anyhow::Result<()> {
    ensure!(child.wait()?.success(), "{name} failed");
    Ok(())
}
