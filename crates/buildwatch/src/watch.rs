//! `buildwatch watch`.

use std::fmt::Write as _;

use db_layer::db_events::Error;
use db_layer::{AtOpen, Signal};
use tokio_util::task::AbortOnDropHandle;

use crate::builds::{self, Build};
use crate::cli::{Site, WatchArgs};
use crate::open::{Opened, open};
use crate::print::{Printed, Printer};
use crate::reaper;
use crate::signals;
use crate::status::Status;
use crate::terminal::shown;

/// The exit code of `--exit-code` without a known result, as in `run`.
const UNKNOWN: u8 = 125;

pub(crate) async fn command(site: &Site, args: WatchArgs) -> anyhow::Result<u8> {
    let mut signals = signals::catch()?;
    // A signal is the usual end of watching, so it is a failure only if the result was asked for.
    let waits_for_the_result = args.exit_code;
    let asked = |signal: Signal| if waits_for_the_result { signal.exit_code() } else { 0 };
    let opened = tokio::select! {
        opened = open(site, AtOpen::Leave) => opened?,
        signal = signals.next() => return Ok(asked(signal)),
    };
    let reaper = AbortOnDropHandle::new(tokio::spawn(reaper::run(opened.db.clone())));
    let code = tokio::select! {
        code = watch(&opened, args) => code,
        signal = signals.next() => Ok(asked(signal)),
    };
    drop(reaper);
    opened.close().await;
    code
}

async fn watch(opened: &Opened, args: WatchArgs) -> anyhow::Result<u8> {
    let find = async || {
        let build = builds::find(&opened.db.api(), &opened.plans, args.id).await?;
        build.ok_or_else(|| anyhow::anyhow!("there is no build {}", args.id))
    };
    let log = find().await?.log;
    let printed = Printer::new(args.print).print_all(opened.db.events().stream(log, args.from)).await;
    let printed = printed.map_err(|error| match error.downcast_ref() {
        Some(Error::Rewound { last, .. }) => anyhow::anyhow!(
            "build {id} has events up to {last} only, and later ones were seen before: \
             `buildwatch watch {id} --from {last}` prints what comes after them",
            id = args.id
        ),
        Some(Error::Removed { .. }) => anyhow::anyhow!("the output of build {} was removed", args.id),
        _ => error,
    })?;
    if !printed.is_whole {
        return Ok(if args.exit_code { UNKNOWN } else { 0 });
    }
    let build = find().await?;
    eprintln!("buildwatch: {}", result(&build, &printed));
    if !args.exit_code {
        return Ok(0);
    }
    // Exit codes have eight bits.
    Ok(build.exit_code.map_or(UNKNOWN, |code| u8::try_from(code).unwrap_or(u8::MAX)))
}

/// The result of a build, in a sentence.
fn result(build: &Build, printed: &Printed) -> String {
    let mut text = format!("build {} {}", build.id, build.status.as_str());
    if let (Status::Failed, Some(code)) = (build.status, build.exit_code) {
        write!(text, " with exit code {code}").expect("writing to a string");
    }
    if let Some(message) = printed.end.as_ref().and_then(|end| end.message.as_deref())
        && message != build.status.as_str()
    {
        write!(text, ": {}", shown(message)).expect("writing to a string");
    }
    text
}
