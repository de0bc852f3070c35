//! `check` and `drift`: what the migrations do on a server of their own.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use db_core::Config;
use db_migrate::check::{
    Check, Checked, CheckedFile, CheckedRepeatable, Difference, Drift, Finding, Traced, WayBack,
};
use db_migrate::{Action, Error, Migrations};

use crate::args::{CheckArgs, DriftArgs, ServerArgs};
use crate::commands::FOUND;
use crate::terminal::{print, print_json, shown, shown_lines};

/// Runs `check`, with the address of the database whose pending migrations are checked, if it is to be asked.
pub(crate) async fn check(
    migrations: &Migrations,
    source: &Path,
    config: Option<&Config>,
    args: &CheckArgs,
) -> anyhow::Result<u8> {
    let mut check = with(&args.server, Check::new(migrations))?;
    if let Some(file) = &args.dump {
        check = check.dump(file);
    }
    for rule in &args.without {
        check = check.without_rule(*rule);
    }
    if let Some(version) = args.after {
        check = check.after(version);
    } else if let Some(config) = config {
        let plan = migrations.plan_up(config, None).await?;
        // The check does without the steps of other programs.
        let is_problem = |problem: &Error| !matches!(problem, Error::NoStep { .. });
        if let Some(problem) = plan.problems.into_iter().find(is_problem) {
            return Err(problem)
                .context("the database cannot be migrated as it is (--all checks without it)");
        }
        check = check.after(plan.current_version);
    }
    let checked = check.run().await?;
    let has_found = checked.files.iter().any(|file| !file.findings.is_empty())
        || checked.repeatables.iter().any(|file| !file.findings.is_empty());
    if args.output.json {
        print_json(&checked)?;
    } else {
        print(&text(&checked, args.trace)?)?;
        if args.github {
            print(&annotations(&checked, source, &paths(source)?))?;
        }
    }
    Ok(if has_found { FOUND } else { 0 })
}

/// Runs `drift`.
pub(crate) async fn drift(migrations: &Migrations, config: &Config, args: &DriftArgs) -> anyhow::Result<u8> {
    let drift = with(&args.server, Check::new(migrations))?.drift(config, None).await?;
    if args.output.json {
        print_json(&drift)?;
    } else {
        let mut text = differences(&drift.differences)?;
        let Drift { version, server, compared_on, .. } = drift;
        if drift.differences.is_empty() {
            writeln!(text, "{config} is what its migrations make, up to version {version}")?;
        }
        if server != compared_on {
            writeln!(
                text,
                "compared on PostgreSQL {compared_on}, and the database is on {server}: some definitions may only be written in another way"
            )?;
        }
        print(&text)?;
    }
    Ok(if drift.differences.is_empty() { 0 } else { FOUND })
}

/// What a database has that its migrations do not make, and the other way round, as one line or more for each object.
pub(crate) fn differences(all: &[Difference]) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    for difference in all {
        writeln!(text, "{}", shown_lines(&difference.to_string()))?;
    }
    Ok(text)
}

pub(crate) fn with<'m>(args: &ServerArgs, mut check: Check<'m>) -> anyhow::Result<Check<'m>> {
    if let Some(file) = &args.setup {
        let sql = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        check = check.setup(sql);
    }
    for name in &args.skip_extension {
        check = check.without_extension(name);
    }
    for name in &args.ignore {
        check = check.without_table(name);
    }
    Ok(check)
}

fn text(checked: &Checked, with_trace: bool) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    for file in &checked.files {
        let CheckedFile { version, description, step_not_run, statements, way_back, findings, .. } = file;
        let is_quiet = *way_back != WayBack::NotTried && step_not_run.is_none();
        if findings.is_empty() && !with_trace && is_quiet {
            continue;
        }
        let told = match way_back {
            WayBack::Missing => "  (no way back)",
            WayBack::NotTried => "  (its way back was not tried)",
            _ => "",
        };
        writeln!(text, "{version} {}{told}", shown(description))?;
        if let Some(step) = step_not_run {
            writeln!(text, "  its step `{}` is the program's, and was not run", shown(step))?;
        }
        write_seen(&mut text, statements, findings, with_trace)?;
    }
    for file in &checked.repeatables {
        let CheckedRepeatable { name, statements, findings, .. } = file;
        if !findings.is_empty() || with_trace {
            writeln!(text, "repeatable {}", shown(name))?;
            write_seen(&mut text, statements, findings, with_trace)?;
        }
    }
    let count = |way_back| checked.files.iter().filter(|file| file.way_back == way_back).count();
    let in_repeatables: usize = checked.repeatables.iter().map(|file| file.findings.len()).sum();
    let findings = checked.files.iter().map(|file| file.findings.len()).sum::<usize>() + in_repeatables;
    writeln!(
        text,
        "files checked on PostgreSQL {server}: {files}; findings: {findings}; went down and up again: {same}; without a way back: {missing}; not tried: {not_tried}",
        server = checked.server,
        files = checked.files.len() + checked.repeatables.len(),
        same = count(WayBack::Same),
        missing = count(WayBack::Missing),
        not_tried = count(WayBack::NotTried)
    )?;
    Ok(text)
}

/// What was seen of one file.
fn write_seen(
    text: &mut String,
    statements: &[Traced],
    findings: &[Finding],
    with_trace: bool,
) -> std::fmt::Result {
    for statement in statements.iter().filter(|_| with_trace) {
        writeln!(text, "  {}", traced(statement))?;
    }
    for finding in findings {
        let side = if finding.action == Action::Down { "down file: " } else { "" };
        writeln!(text, "  {side}{}", shown_lines(&finding.to_string()).replace('\n', "\n  "))?;
    }
    Ok(())
}

fn traced(statement: &Traced) -> String {
    let Traced { position, took, locks, rewritten, scanned, .. } = statement;
    let mut line = format!("{position}: {:.1} ms", took.as_secs_f64() * 1e3);
    for lock in locks {
        // Writing to a string does not fail.
        let _ = write!(line, ", {:?} on {}", lock.mode, shown(&lock.table));
    }
    for (tables, what) in [(rewritten, "writes anew"), (scanned, "reads all of")] {
        if !tables.is_empty() {
            let _ = write!(line, ", {what} {}", shown(&tables.join(", ")));
        }
    }
    line
}

/// The files by version and direction. Their names may have zeros before the version.
fn paths(source: &Path) -> anyhow::Result<HashMap<(i64, bool), PathBuf>> {
    let mut paths = HashMap::new();
    for entry in fs::read_dir(source).with_context(|| format!("read {}", source.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let version = name.split_once('_').and_then(|(version, _)| version.parse().ok());
        if let (Some(version), Some(rest)) = (version, name.strip_suffix(".sql")) {
            paths.insert((version, rest.strip_suffix(".down").is_some()), path.clone());
        }
    }
    Ok(paths)
}

/// The findings as workflow commands of GitHub Actions, which shows them at their lines.
fn annotations(checked: &Checked, source: &Path, paths: &HashMap<(i64, bool), PathBuf>) -> String {
    let versioned = checked.files.iter().flat_map(|file| {
        let path = |finding: &Finding| paths.get(&(file.version, finding.action == Action::Down)).cloned();
        file.findings.iter().map(move |finding| (finding, path(finding).unwrap_or_default()))
    });
    let repeatables = checked.repeatables.iter().flat_map(|file| {
        let path = source.join("repeatable").join(format!("{}.sql", file.name));
        file.findings.iter().map(move |finding| (finding, path.clone()))
    });
    let mut text = String::new();
    for (finding, path) in versioned.chain(repeatables) {
        let Finding { rule, position, message, advice, .. } = finding;
        let (line, column) = position.map_or((1, 1), |position| (position.line, position.column));
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "::error file={},line={line},col={column},title={}::{}",
            escaped(&path.display().to_string()).replace(':', "%3A").replace(',', "%2C"),
            rule.name(),
            escaped(&format!("{message}. {advice}"))
        );
    }
    text
}

fn escaped(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}
