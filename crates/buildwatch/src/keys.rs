//! `buildwatch keys`.

use std::time::Duration;

use db_layer::db_migrate::KeysArgs;
use db_layer::encryption::{KeyReader, KeyRecord};
use db_layer::{Pool, PoolOptions};

use crate::builds::Plans;
use crate::cli::Site;
use crate::open::{self, Place};
use crate::terminal::print_out;

/// Limit for closing the pool.
const CLOSE: Duration = Duration::from_secs(1);

pub(crate) async fn command(site: &Site, args: KeysArgs) -> anyhow::Result<u8> {
    let sources = open::keys(site)?;
    let Place { options, server } = open::place(site).await?;
    let sources = sources.or(options.keys);
    let pool = Pool::lazy(&options.database, PoolOptions::named("keys").max(1));
    let done = async {
        let given = match sources {
            Some(sources) => KeyReader::new(sources).read(true).await?,
            None => None,
        };
        let record = KeyRecord::new(&pool);
        Ok(args.run(&record, given.as_ref(), options.holding.envelope, &Plans::columns()).await?)
    };
    let done: anyhow::Result<String> = done.await;
    pool.close(CLOSE).await;
    open::release(server).await;
    print_out(&done?)?;
    Ok(0)
}
