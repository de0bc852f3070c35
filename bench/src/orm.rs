//! Entities of `SeaORM` on our pool, beside the same on its own connection and statements of sqlx on our pool.

use tokio::runtime::Runtime;

use crate::peers::{Find, Ours, OursOrm, SeaOrm, Test, Update};
use crate::report::Report;
use crate::rounds::{interleave, narrow};
use crate::rows::{CONNECTIONS, arm, make_rows};
use crate::server::Database;

/// With `only`, runs these arms without ratios.
pub(crate) fn measure(runtime: &Runtime, rounds: usize, only: &[String]) -> anyhow::Result<Report> {
    Database::with(runtime, |database| {
        let url = database.url();
        runtime.block_on(make_rows(database))?;
        let _inside = runtime.enter();
        let sqlx = Ours::new(&database.config()?, CONNECTIONS);
        let ours = OursOrm::new(&database.config()?, CONNECTIONS);
        let seaorm = runtime.block_on(SeaOrm::new(url, CONNECTIONS, Test::Default))?;
        let seaorm_no_test = runtime.block_on(SeaOrm::new(url, CONNECTIONS, Test::Off))?;
        let mut arms = vec![
            arm(runtime, "orm.10.sqlx", Find(sqlx)),
            arm(runtime, "orm.10.ours", Find(ours.clone())),
            arm(runtime, "orm.10.seaorm", Find(seaorm.clone())),
            arm(runtime, "orm.10.seaorm_no_test", Find(seaorm_no_test)),
            arm(runtime, "orm.tx.ours", Update(ours)),
            arm(runtime, "orm.tx.seaorm", Update(seaorm)),
        ];

        let what = database.what().to_owned();
        if narrow(&mut arms, only)? {
            return Ok(interleave(&arms, rounds)?.report(what, Vec::new()));
        }
        let measured = interleave(&arms, rounds)?;
        let rows = vec![
            measured.rates("orm.10.vs_seaorm", "orm.10.ours", "orm.10.seaorm"),
            measured.rates("orm.10.vs_seaorm_no_test", "orm.10.ours", "orm.10.seaorm_no_test"),
            measured.rates("orm.tx.vs_seaorm", "orm.tx.ours", "orm.tx.seaorm"),
            measured.rates("orm.vs_sqlx", "orm.10.ours", "orm.10.sqlx"),
        ];
        Ok(measured.report(what, rows))
    })
}
