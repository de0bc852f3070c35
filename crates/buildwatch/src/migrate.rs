//! `buildwatch migrate`.

use std::fmt::Write;
use std::io::{self, IsTerminal};

use anyhow::bail;
use db_layer::db_migrate::State;
use db_layer::{Config, Migrations};
use serde_json::json;

use crate::cli::{MigrateAction, MigrateArgs, Site};
use crate::open::{self, Place};
use crate::terminal::{json_line, print_out, shown};

pub(crate) async fn command(site: &Site, args: MigrateArgs) -> anyhow::Result<u8> {
    let Place { options, server } = open::place(site).await?;
    let done = act(&options.direct.unwrap_or(options.database), args).await;
    open::release(server).await;
    print_out(&done?)?;
    Ok(0)
}

async fn act(config: &Config, args: MigrateArgs) -> anyhow::Result<String> {
    let migrations = open::migrations();
    let mut text = String::new();
    let report = match args.action.unwrap_or(MigrateAction::Up) {
        MigrateAction::Info => {
            let plan = migrations.plan_up(config, None).await?;
            for status in plan.status {
                if args.json {
                    writeln!(text, "{}", json_line(&status)?)?;
                } else {
                    let state = format!("{:?}", status.state).to_lowercase();
                    writeln!(text, "{}  {state:<8}  {}", status.version, shown(&status.description))?;
                }
            }
            for file in plan.repeatables {
                if args.json {
                    writeln!(text, "{}", json_line(&file)?)?;
                } else {
                    let state = format!("{:?}", file.state).to_lowercase();
                    writeln!(text, "repeatable      {state:<8}  {}", shown(&file.name))?;
                }
            }
            return Ok(text);
        }
        MigrateAction::Up => ("applied", migrations.up(config).await?),
        MigrateAction::Down { to, yes } => {
            if !yes {
                confirm(&migrations, config, to).await?;
            }
            ("reverted", migrations.down_to(config, to).await?)
        }
    };
    let (action, report) = report;
    for version in report.changed {
        if args.json {
            writeln!(text, "{}", json!({ "version": version, "action": action }))?;
        } else {
            writeln!(text, "{version}  {action}")?;
        }
    }
    for name in report.repeated {
        if args.json {
            writeln!(text, "{}", json!({ "name": name, "action": action }))?;
        } else {
            writeln!(text, "repeatable      {action}  {}", shown(&name))?;
        }
    }
    eprintln!("buildwatch: the database is at version {}", report.version);
    Ok(text)
}

/// Asks on the terminal for a confirmation, if there is anything to revert.
async fn confirm(migrations: &Migrations, config: &Config, to: i64) -> anyhow::Result<()> {
    let applied: Vec<_> = migrations
        .status(config)
        .await?
        .into_iter()
        .filter(|status| status.version > to && status.state != State::Pending)
        .collect();
    if applied.is_empty() {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        bail!(
            "migrate down deletes the data in the reverted tables, and there is no terminal to ask on: add --yes to confirm"
        );
    }
    for status in &applied {
        eprintln!("{}  {}", status.version, shown(&status.description));
    }
    eprint!("Revert these in {config}, and delete their data? Type yes to confirm: ");
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line)
    });
    if answer.await??.trim() != "yes" {
        bail!("nothing was reverted");
    }
    Ok(())
}
