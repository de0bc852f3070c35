//! `buildwatch rekey` and `buildwatch verify`.

use std::io;

use anyhow::Context;
use db_layer::AtOpen;
use db_layer::db_migrate::command::SealedColumns;

use crate::builds::Plans;
use crate::cli::Site;
use crate::open::{Opened, open};
use crate::signals;

pub(crate) async fn command(site: &Site, command: SealedColumns) -> anyhow::Result<u8> {
    let mut signals = signals::catch()?;
    let opened = tokio::select! {
        opened = open(site, AtOpen::Leave) => opened?,
        signal = signals.next() => return Ok(signal.exit_code()),
    };
    let stopped = async {
        signals.next().await;
    };
    let is_done = run(&opened, &command, stopped).await;
    opened.close().await;
    Ok(u8::from(!is_done?))
}

async fn run(
    opened: &Opened,
    command: &SealedColumns,
    stopped: impl Future<Output = ()>,
) -> anyhow::Result<bool> {
    let keys = opened.db.keys().context("there is no encryption key")?;
    let (declared, mut out) = (Plans::columns().declared(), io::stdout());
    Ok(command.run(&opened.direct, &declared, keys.clone(), &mut out, stopped).await?)
}
