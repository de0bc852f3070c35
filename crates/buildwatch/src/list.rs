//! `buildwatch list`.

use std::fmt::Write as _;

use db_layer::AtOpen;
use time::format_description::well_known::Rfc3339;

use crate::builds::{self, Build};
use crate::cli::{ListArgs, Site};
use crate::open::open;
use crate::terminal::{json_line, print_out};
use crate::visible::{is_hidden, visible};

/// How many builds are listed.
pub(crate) const LIMIT: i64 = 100;

pub(crate) async fn command(site: &Site, args: ListArgs) -> anyhow::Result<u8> {
    let opened = open(site, AtOpen::Leave).await?;
    let builds = builds::newest(&opened.db.api(), &opened.plans, LIMIT).await;
    opened.close().await;
    let builds = builds?;

    let mut text = String::new();
    if args.json {
        for build in &builds {
            writeln!(text, "{}", json_line(build)?)?;
        }
    } else {
        for build in &builds {
            writeln!(text, "{}", row(build)?)?;
        }
    }
    if builds.is_empty() && !args.json {
        eprintln!("buildwatch: no builds yet; try: buildwatch{} run -- echo hello", site.flags());
    }
    print_out(&text)?;
    Ok(0)
}

fn row(build: &Build) -> anyhow::Result<String> {
    let at = build.created_at.replace_nanosecond(0)?.format(&Rfc3339)?;
    let code = build.exit_code.map_or_else(|| "-".to_owned(), |code| code.to_string());
    let command = build.command.as_deref().map_or_else(|| "(sealed under another key)".to_owned(), shown);
    Ok(format!("{:>6}  {:<9}  {code:>4}  {at}  {command}", build.id, build.status.as_str()))
}

/// A command line, escaped to stay on one line.
fn shown(command: &[String]) -> String {
    let words = command.iter().map(|word| {
        let is_plain = |c: char| (c.is_alphanumeric() && !is_hidden(c)) || "-_./=:,@%+".contains(c);
        let plain = !word.is_empty() && word.chars().all(is_plain);
        if plain { word.clone() } else { visible(&format!("{word:?}")) }
    });
    words.collect::<Vec<_>>().join(" ")
}
