//! pgbench, which is written in C, keeps its connections and has no pool.

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tempfile::NamedTempFile;

use crate::load::Slice;

/// How long pgbench may run beyond its time.
const PATIENCE: Duration = Duration::from_secs(20);

/// pgbench and its script.
#[derive(Debug)]
pub(crate) struct Pgbench {
    program: PathBuf,
    script: NamedTempFile,
    url: String,
}

impl Pgbench {
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        let program = find().context(
            "there is no pgbench: it is in Debian's package `postgresql`, in others' `postgresql-contrib`; \
             DB_EMBEDDED_PGBIN names the folder to look in",
        )?;
        let mut script = NamedTempFile::new()?;
        // A different number each time, as for the other arms.
        writeln!(script, "\\set n :n + 1\nselect :n::int8;")?;
        Ok(Self { program, script, url: url.to_owned() })
    }

    /// Runs pgbench for whole seconds, its unit.
    pub(crate) fn run(&self, connections: u32, time: Duration) -> anyhow::Result<Slice> {
        let seconds = time.as_secs().max(1);
        let mut pgbench = Command::new(&self.program)
            .args(["-M", "prepared", "-n", "-j", "2", "-D", "n=0"])
            .args(["-c", &connections.to_string(), "-T", &seconds.to_string(), "-f"])
            .arg(self.script.path())
            .arg(&self.url)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| self.program.display().to_string())?;
        let deadline = Instant::now() + Duration::from_secs(seconds) + PATIENCE;
        let status = loop {
            if let Some(status) = pgbench.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                pgbench.kill()?;
                pgbench.wait()?;
                bail!("pgbench did not end");
            }
            thread::sleep(Duration::from_millis(5));
        };
        // Its output fits into a pipe.
        let (mut said, mut complaint) = (String::new(), String::new());
        pgbench.stdout.take().context("piped stdout")?.read_to_string(&mut said)?;
        pgbench.stderr.take().context("piped stderr")?.read_to_string(&mut complaint)?;
        ensure!(status.success(), "pgbench: {status}: {complaint}");
        let rate = tps(&said).with_context(|| format!("pgbench printed no tps: {said}"))?;
        Ok(Slice::of(rate, None))
    }
}

/// `tps = 81234.567890 (without initial connection time)`
fn tps(said: &str) -> Option<f64> {
    said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok())
}

/// The folders in which `db-embedded` searches for the server's programs, too.
fn find() -> Option<PathBuf> {
    if let Some(named) = env::var_os("DB_EMBEDDED_PGBIN").filter(|folder| !folder.is_empty()) {
        return Some(PathBuf::from(named).join("pgbench")).filter(|program| program.is_file());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    if let Some(said) =
        Command::new("pg_config").arg("--bindir").output().ok().filter(|it| it.status.success())
    {
        folders.push(PathBuf::from(String::from_utf8_lossy(&said.stdout).trim()));
    }
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort();
    folders.extend(versions.into_iter().rev().map(|(_, folder)| folder));
    folders.into_iter().map(|folder| folder.join("pgbench")).find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tps_are_parsed() {
        let said =
            "pgbench (15.18)\nlatency average = 0.1 ms\ntps = 81234.5 (without initial connection time)\n";

        assert_eq!(tps(said), Some(81234.5));
        assert_eq!(tps("pgbench: error\n"), None);
    }
}
