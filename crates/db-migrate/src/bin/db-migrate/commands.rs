//! What each subcommand does.

use std::fmt::Write;

use anyhow::{Context, bail};
use db_core::Config;
use db_migrate::check::Check;
use db_migrate::{Action, Attempt, Error, Migrations, Outcome, Plan, Planned, Repair, State, Status};
use time::OffsetDateTime;

use crate::answers::{Attempts, Change, Changes, Files, Findings, Problem, Recorded, Statuses, Step};
use crate::args::{
    BaselineArgs, Cli, Command, ConfirmArgs, DownArgs, Found, HistoryArgs, NewArgs, OutputArgs, PlanArgs,
    ReblessArgs, RedoArgs, RepairArgs, Site, UpArgs,
};
use crate::terminal::{ask, is_terminal, print, print_json, print_lines, shown, shown_lines};
use crate::{answers, new, trial};

/// `--check`, `validate`, `check` or `drift` has found something.
pub(crate) const FOUND: u8 = 2;

/// Runs the command, or ends with Ctrl-C: the connection is closed, and the migration under way is rolled back.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<u8> {
    let interrupted = match cli.command {
        Command::Check(_) | Command::Drift(_) => {
            "interrupted: the server of its own ends, and nothing else was changed"
        }
        _ => {
            "interrupted: a migration that ran is rolled back, or, outside of a transaction, goes on with the next `up`; those before it stay"
        }
    };
    tokio::select! {
        done = command(cli) => done,
        _ = tokio::signal::ctrl_c() => bail!(interrupted),
    }
}

async fn command(cli: Cli) -> anyhow::Result<u8> {
    let Cli { site, command } = cli;
    if let Command::New(args) = command {
        return make(&site, &args);
    }
    let migrations = match (migrations(&site).await, &command) {
        (Err(error @ Error::Source { .. }), Command::Validate(output)) => {
            return found(*output, &Findings { problems: vec![Problem::of(&error)], warnings: Vec::new() });
        }
        (migrations, _) => migrations?,
    };
    if let Command::Check(args) = command {
        let has_address = site.database_url.as_ref().is_some_and(|url| !url.is_empty());
        let asks = !args.all && args.after.is_none() && args.dump.is_none();
        let config = (asks && has_address).then(|| config(&site)).transpose()?;
        return trial::check(&migrations, &site.source, config.as_ref(), &args).await;
    }
    let run = Run { migrations, config: config(&site)? };
    match command {
        Command::New(_) | Command::Check(_) => unreachable!("handled above"),
        Command::Drift(args) => trial::drift(&run.migrations, &run.config, &args).await,
        Command::Plan(args) => run.plan(&args).await,
        Command::Status(args) => run.status(args.output, args.check).await,
        Command::Validate(output) => run.validate(output).await,
        Command::Up(args) => run.up(&args).await,
        Command::Down(args) => run.down(&args).await,
        Command::Redo(args) => run.redo(&args).await,
        Command::Baseline(args) => run.baseline(&args).await,
        Command::Repair(args) => run.repair(&args).await,
        Command::Rebless(args) => run.rebless(&args).await,
        Command::History(args) => run.history(&args).await,
    }
}

async fn migrations(site: &Site) -> Result<Migrations, Error> {
    let mut migrations = Migrations::from_dir(&site.source)
        .await?
        .with_edits(site.edits.into())
        .with_stored_sql(!site.without_stored_sql)
        .with_stored_downs(true)
        .with_program(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    if let Some(table) = &site.table {
        migrations = migrations.with_table(table);
    }
    if let Some(role) = &site.role {
        migrations = migrations.with_role(role);
    }
    Ok(migrations)
}

fn config(site: &Site) -> anyhow::Result<Config> {
    let url =
        site.database_url.as_deref().context("no database: give --database-url, or set DATABASE_URL")?;
    let config = Config::from_url(url).context("the database's address")?;
    Ok(config.with_application_name(env!("CARGO_PKG_NAME")))
}

fn make(site: &Site, args: &NewArgs) -> anyhow::Result<u8> {
    let made = if args.repeatable {
        vec![new::repeatable(&site.source, &args.name)?]
    } else {
        let up = match (&args.step, &args.batches) {
            (Some(step), _) => new::step(step, "")?,
            (_, Some(step)) => new::step(step, "-- no-transaction\n")?,
            _ => new::EMPTY.to_owned(),
        };
        new::files(&site.source, &args.name, &up, args.simple, OffsetDateTime::now_utc())?
    };
    let files: Vec<String> = made.iter().map(|path| path.display().to_string()).collect();
    if args.output.json {
        print_json(&Files { files })?;
    } else {
        print_lines(files.iter().map(|file| shown(file)))?;
    }
    Ok(0)
}

struct Run {
    migrations: Migrations,
    config: Config,
}

impl Run {
    async fn plan(&self, args: &PlanArgs) -> anyhow::Result<u8> {
        let plan = match args.down_to {
            Some(target) => self.migrations.plan_down(&self.config, target).await?,
            None => self.migrations.plan_up(&self.config, args.to).await?,
        };
        let is_something = !plan.steps.is_empty() || !plan.problems.is_empty();
        if args.check.output.json {
            print_json(&answers::Plan {
                current_version: plan.current_version,
                supported_version: self.migrations.supported_version(),
                steps: plan
                    .steps
                    .iter()
                    .map(|step| {
                        let sql = args.sql.then(|| step.sql.clone());
                        Step { planned: step.clone(), sql }
                    })
                    .collect(),
                problems: plan.problems.iter().map(Problem::of).collect(),
            })?;
        } else {
            let mut text = String::new();
            for step in &plan.steps {
                writeln!(text, "{}", line(step))?;
                if args.sql {
                    writeln!(text, "{}\n", shown_lines(&step.sql))?;
                }
            }
            for problem in &plan.problems {
                writeln!(text, "stopped by: {}", shown_lines(&problem.to_string()))?;
            }
            if !is_something {
                text.push_str("nothing to do\n");
            }
            print(&text)?;
        }
        Ok(if args.check.check && is_something { FOUND } else { 0 })
    }

    async fn status(&self, output: OutputArgs, check: bool) -> anyhow::Result<u8> {
        let plan = self.migrations.plan_up(&self.config, None).await?;
        let is_something = !plan.steps.is_empty() || !plan.problems.is_empty();
        let Plan { status: migrations, repeatables, current_version, .. } = plan;
        let mut text = String::new();
        for status in &migrations {
            writeln!(text, "{}  {:<11}  {}", status.version, name(status.state), shown(&status.description))?;
        }
        for file in &repeatables {
            writeln!(text, "repeatable  {:<11}  {}", name(file.state), shown(&file.name))?;
        }
        let supported_version = self.migrations.supported_version();
        writeln!(text, "the database is at version {current_version}, the folder at {supported_version}")?;
        if output.json {
            print_json(&Statuses { current_version, supported_version, migrations, repeatables })?;
        } else {
            print(&text)?;
        }
        Ok(if check && is_something { FOUND } else { 0 })
    }

    async fn validate(&self, output: OutputArgs) -> anyhow::Result<u8> {
        let plan = self.migrations.plan_up(&self.config, None).await?;
        let reformatted = plan.status.iter().filter(|status| status.state == State::Reformatted);
        // Another program has the step.
        let (steps, problems): (Vec<_>, Vec<_>) =
            plan.problems.iter().partition(|problem| matches!(problem, Error::NoStep { .. }));
        let told = problems.into_iter().map(Problem::of).collect::<Vec<_>>();
        let warned =
            reformatted.filter(|status| told.iter().all(|problem| problem.version != Some(status.version)));
        let warnings = warned.map(|status| Problem {
            version: Some(status.version),
            message: format!(
                "comments or formatting of migration {} were changed after it was applied: sqlx refuses it until `db-migrate rebless`",
                status.version
            ),
        });
        let warnings = warnings.chain(steps.into_iter().map(Problem::of));
        let findings = Findings { warnings: warnings.collect(), problems: told };
        found(output, &findings)
    }

    async fn up(&self, args: &UpArgs) -> anyhow::Result<u8> {
        let report = match args.to {
            Some(version) => self.migrations.up_to(&self.config, version).await?,
            None => self.migrations.up(&self.config).await?,
        };
        let changed = report.changed.into_iter().map(|version| Change { version, action: Action::Up });
        changes(args.output, changed.collect(), report.repeated, report.version)
    }

    async fn down(&self, args: &DownArgs) -> anyhow::Result<u8> {
        let target = match args.to {
            Some(target) => target,
            None => self.target(args.steps).await?,
        };
        let plan = self.migrations.plan_down(&self.config, target).await?;
        let Some(plan) = confirmed(plan, &self.config, args.confirm, "Revert these").await? else {
            let version = self.migrations.current_version(&self.config).await?;
            return changes(args.output, Vec::new(), Vec::new(), version);
        };
        let report = self.migrations.down_by(&self.config, &plan).await?;
        let changed = report.changed.into_iter().map(|version| Change { version, action: Action::Down });
        changes(args.output, changed.collect(), report.repeated, report.version)
    }

    async fn redo(&self, args: &RedoArgs) -> anyhow::Result<u8> {
        let status = self.migrations.status(&self.config).await?;
        let mut versions = on_record(&status);
        let newest = versions.next().context("no migration is applied")?;
        let target = versions.next().unwrap_or(0);
        // An error if the folder has no such file, or one that could not be applied again.
        self.migrations.plan_up(&self.config, Some(newest)).await?;
        if let Some(problem) = self.migrations.problems_after(target).into_iter().next() {
            return Err(problem.into());
        }
        let plan = self.migrations.plan_down(&self.config, target).await?;
        let question = "Revert this and apply it again";
        let plan = confirmed(plan, &self.config, args.confirm, question).await?;
        let plan = plan.context("no migration is applied")?;
        let down = self.migrations.down_by(&self.config, &plan).await?;
        let up = self.migrations.up_to(&self.config, newest).await?;
        let all = [(Action::Down, down.changed), (Action::Up, up.changed)];
        let changed = all
            .into_iter()
            .flat_map(|(action, of)| of.into_iter().map(move |version| Change { version, action }));
        changes(args.output, changed.collect(), up.repeated, up.version)
    }

    /// The version that is left when this number of migrations is reverted.
    async fn target(&self, steps: usize) -> anyhow::Result<i64> {
        let status = self.migrations.status(&self.config).await?;
        Ok(on_record(&status).nth(steps).unwrap_or(0))
    }

    async fn baseline(&self, args: &BaselineArgs) -> anyhow::Result<u8> {
        if !args.unchecked {
            let check = trial::with(&args.server, Check::new(&self.migrations))?;
            let drift = check.drift(&self.config, Some(args.version)).await;
            let drift =
                drift.context("compare the database with what the migrations make (--unchecked does not)")?;
            if !drift.differences.is_empty() {
                bail!(
                    "nothing was recorded: the database is not what the migrations make up to {}:\n{}--unchecked records it all the same",
                    args.version,
                    trial::differences(&drift.differences)?
                );
            }
        }
        let versions = self.migrations.baseline(&self.config, args.version, &args.reason).await?;
        recorded(args.output, versions, "applied, and not run")
    }

    async fn rebless(&self, args: &ReblessArgs) -> anyhow::Result<u8> {
        let versions = self.migrations.rebless(&self.config, &args.versions, &args.reason).await?;
        recorded(args.output, versions, "its checksum is on record")
    }

    async fn repair(&self, args: &RepairArgs) -> anyhow::Result<u8> {
        let found = match args.found {
            Found::StatementDone => Repair::StatementDone,
            Found::StatementUndone => Repair::StatementUndone,
            Found::Applied => Repair::Applied,
            Found::NotApplied => Repair::NotApplied,
        };
        self.migrations.repair(&self.config, args.version, found).await?;
        recorded(args.output, vec![args.version], "repaired")
    }

    async fn history(&self, args: &HistoryArgs) -> anyhow::Result<u8> {
        let mut attempts = self.migrations.history(&self.config).await?;
        attempts.retain(|attempt| args.version.is_none_or(|version| attempt.version == version));
        if args.output.json {
            print_json(&Attempts { attempts })?;
        } else {
            let text: String = attempts.iter().map(told).collect();
            print(&text)?;
        }
        Ok(0)
    }
}

fn found(output: OutputArgs, findings: &Findings) -> anyhow::Result<u8> {
    if output.json {
        print_json(findings)?;
    } else {
        let mut text = String::new();
        for (kind, all) in [("error", &findings.problems), ("warning", &findings.warnings)] {
            for problem in all {
                writeln!(text, "{kind}: {}", shown_lines(&problem.message))?;
            }
        }
        if text.is_empty() {
            text.push_str("nothing is wrong\n");
        }
        print(&text)?;
    }
    Ok(if findings.problems.is_empty() { 0 } else { FOUND })
}

/// The versions on record, the newest first.
fn on_record(status: &[Status]) -> impl Iterator<Item = i64> {
    status.iter().rev().filter(|status| status.state != State::Pending).map(|status| status.version)
}

/// A file that would run, in a line.
fn line(step: &Planned) -> String {
    let version = match step.action {
        Action::Repeat => "repeatable".to_owned(),
        _ => step.version.to_string(),
    };
    let mut text = format!("{version}  {:<4}  {}", step.action.name(), shown(&step.description));
    let statements = step.statements.map_or_else(String::new, |number| {
        format!("{number} statement{}", if number == 1 { "" } else { "s" })
    });
    let rust = step.step.as_deref().map(|name| format!("the program's step `{}`", shown(name)));
    let runs = rust.unwrap_or(statements);
    let notes = [
        (!runs.is_empty(), &*runs),
        (!step.in_transaction, "outside of a transaction"),
        (step.goes_on, "goes on where it was cut off"),
        (step.from_record, "as the database has it on record"),
    ];
    let notes: Vec<_> = notes.iter().filter(|(is_so, _)| *is_so).map(|(_, note)| *note).collect();
    if !notes.is_empty() {
        // Writing to a string does not fail.
        let _ = write!(text, "  ({})", notes.join(", "));
    }
    text
}

/// An attempt, in one or two lines.
fn told(attempt: &Attempt) -> String {
    let outcome = match attempt.outcome {
        Outcome::Done => "done",
        Outcome::Failed => "failed",
        _ => "not ended",
    };
    let by = [attempt.program.as_deref(), attempt.program_version.as_deref()];
    let by = by.into_iter().flatten().collect::<Vec<_>>().join(" ");
    let took = attempt.milliseconds.map(|took| format!(" in {took} ms")).unwrap_or_default();
    let host = attempt.host.as_deref().map(|host| format!(" on {host}")).unwrap_or_default();
    let mut text = format!(
        "{}  {}  {:<9}  {outcome}{took}  {}, by {}{}{}\n",
        attempt.began_at,
        attempt.version,
        attempt.action.name(),
        shown(&attempt.description),
        shown(&attempt.done_by),
        shown(&host),
        if by.is_empty() { String::new() } else { format!(" with {}", shown(&by)) },
    );
    let mut more = Vec::new();
    more.extend(attempt.sqlstate.as_ref().map(|code| format!("SQLSTATE {code}")));
    more.extend(attempt.at.map(|at| at.to_string()));
    more.extend(attempt.line.as_ref().map(|line| shown(line.trim())));
    more.extend(attempt.reason.as_ref().map(|reason| shown(reason)));
    if !more.is_empty() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "    {}", more.join(": "));
    }
    text
}

fn name(state: State) -> &'static str {
    match state {
        State::Pending => "pending",
        State::Applied => "applied",
        State::Reformatted => "reformatted",
        State::Changed => "changed",
        State::Unknown => "unknown",
        State::UnderWay => "under way",
        _ => "dirty",
    }
}

/// Asks for what is to be reverted, if it is anything. Where nobody can be asked, the flags have to say it.
async fn confirmed(
    mut plan: Plan,
    config: &Config,
    args: ConfirmArgs,
    question: &str,
) -> anyhow::Result<Option<Plan>> {
    if !plan.problems.is_empty() {
        return Err(plan.problems.swap_remove(0).into());
    }
    if plan.steps.is_empty() {
        return Ok(None);
    }
    let from_record = plan.steps.iter().any(|step| step.from_record);
    if args.yes && from_record && !args.from_record {
        bail!(
            "the folder has no way back of {}: look at what the database has on record (`plan --down-to … --sql`), and add --from-record",
            plan.steps
                .iter()
                .filter(|step| step.from_record)
                .map(|step| step.version.to_string())
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    if args.yes {
        return Ok(Some(plan));
    }
    if !is_terminal() {
        bail!("going down deletes data, and there is no terminal to ask on: add --yes to confirm");
    }
    for step in &plan.steps {
        eprintln!("{}", line(step));
        if step.from_record {
            eprintln!("{}", shown_lines(&step.sql));
        }
    }
    ask(&format!("{question} in {config}, and delete their data?")).await?;
    Ok(Some(plan))
}

fn changes(
    output: OutputArgs,
    changed: Vec<Change>,
    repeated: Vec<String>,
    version: i64,
) -> anyhow::Result<u8> {
    if output.json {
        print_json(&Changes { changed, repeated, version })?;
    } else {
        let mut text = String::new();
        for Change { version, action } in changed {
            let action = if action == Action::Down { "reverted" } else { "applied" };
            writeln!(text, "{version}  {action}")?;
        }
        for name in repeated {
            writeln!(text, "repeatable  applied  {}", shown(&name))?;
        }
        writeln!(text, "the database is at version {version}")?;
        print(&text)?;
    }
    Ok(0)
}

fn recorded(output: OutputArgs, recorded: Vec<i64>, what: &str) -> anyhow::Result<u8> {
    if output.json {
        print_json(&Recorded { recorded })?;
    } else if recorded.is_empty() {
        print("nothing was to be recorded\n")?;
    } else {
        print_lines(recorded.iter().map(|version| format!("{version}  {what}")))?;
    }
    Ok(0)
}
