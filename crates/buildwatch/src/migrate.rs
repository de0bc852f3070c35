//! `buildwatch migrate`.

use std::fmt::Write;

use serde_json::json;

use crate::cli::{MigrateAction, MigrateArgs, Site};
use crate::list::print_out;
use crate::open::{self, Place};

pub(crate) async fn command(site: &Site, args: MigrateArgs) -> anyhow::Result<u8> {
    let Place { options, server } = open::place(site).await?;
    let done = act(&options.direct.unwrap_or(options.database), args).await;
    open::release(server).await;
    print_out(&done?)?;
    Ok(0)
}

async fn act(config: &db_layer::Config, args: MigrateArgs) -> anyhow::Result<String> {
    let migrations = open::migrations();
    let mut text = String::new();
    let report = match args.action.unwrap_or(MigrateAction::Up) {
        MigrateAction::Info => {
            for status in migrations.status(config).await? {
                if args.json {
                    writeln!(text, "{}", serde_json::to_string(&status)?)?;
                } else {
                    let state = format!("{:?}", status.state).to_lowercase();
                    writeln!(text, "{}  {state:<8}  {}", status.version, status.description)?;
                }
            }
            return Ok(text);
        }
        MigrateAction::Up => ("applied", migrations.up(config).await?),
        MigrateAction::Down { to } => ("reverted", migrations.down_to(config, to).await?),
    };
    let (action, report) = report;
    for version in report.changed {
        if args.json {
            writeln!(text, "{}", json!({ "version": version, "action": action }))?;
        } else {
            writeln!(text, "{version}  {action}")?;
        }
    }
    eprintln!("buildwatch: the database is at version {}", report.version);
    Ok(text)
}
