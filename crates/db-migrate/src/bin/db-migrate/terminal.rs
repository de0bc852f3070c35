//! Printing and asking.

use std::io::{self, IsTerminal, Write};

use anyhow::bail;
use serde::Serialize;

/// Text of one line that a terminal shows and does not interpret.
pub(crate) fn shown(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\t' { c.escape_default().to_string() } else { c.into() })
        .collect()
}

/// As [`shown`], of one or more lines.
pub(crate) fn shown_lines(text: &str) -> String {
    text.lines().map(shown).collect::<Vec<_>>().join("\n")
}

pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Who read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

pub(crate) fn print_lines(lines: impl Iterator<Item = String>) -> anyhow::Result<()> {
    print(&lines.map(|line| line + "\n").collect::<String>())
}

pub(crate) fn print_json(answer: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(answer)?))
}

pub(crate) fn is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Asks on the terminal; an error unless the answer is `yes`.
pub(crate) async fn ask(question: &str) -> anyhow::Result<()> {
    eprint!("{question} Type yes to confirm: ");
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line)
    });
    if answer.await??.trim() != "yes" {
        bail!("nothing was changed");
    }
    Ok(())
}
