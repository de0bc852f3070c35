//! `buildwatch watch`.

use tokio_util::task::AbortOnDropHandle;

use crate::builds;
use crate::cli::{Site, WatchArgs};
use crate::open::{Opened, open};
use crate::print::Printer;
use crate::reaper;
use crate::signals;

pub(crate) async fn command(site: &Site, args: WatchArgs) -> anyhow::Result<u8> {
    let mut signals = signals::catch()?;
    let opened = tokio::select! {
        opened = open(site) => opened?,
        _ = signals.next() => return Ok(0),
    };
    let reaper = AbortOnDropHandle::new(tokio::spawn(reaper::run(opened.db.clone())));
    // Being asked to end is how watching usually ends, so it is no failure.
    let code = tokio::select! {
        code = watch(&opened, args) => code,
        _ = signals.next() => Ok(0),
    };
    drop(reaper);
    opened.close().await;
    code
}

async fn watch(opened: &Opened, args: WatchArgs) -> anyhow::Result<u8> {
    let Some(build) = builds::find(&opened.db, args.id).await? else {
        anyhow::bail!("there is no build {}", args.id);
    };
    Printer::new(args.print).print_all(opened.db.events().stream(build.log, args.from)).await?;
    Ok(0)
}
