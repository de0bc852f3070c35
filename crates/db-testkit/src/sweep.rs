//! Drops the databases of tests that were killed.

use sqlx::Row;

use crate::admin::Admin;
use crate::error::Error;

/// No test has to clean up after all those of a whole day.
const AT_MOST: usize = 4;

/// Drops some databases whose lock nobody holds. One query when there are none.
///
/// Safe while others create theirs: the lock is taken before the database exists, and given up, by the end of the
/// session, after it is gone.
pub(crate) async fn sweep(admin: &mut Admin) -> Result<(), Error> {
    let sql = "
        select datname::text
        from pg_database d
        where datname ~ ('^tk_[a-z0-9]{10}_' || $1 || '$')
          and not exists (
            select from pg_locks
            where locktype = 'advisory' and granted and objsubid = 1 and database::text = $1
              and (classid::int8 << 32 | objid::int8) = hashtextextended(d.datname, 0)
          )";
    let home = admin.home().to_string();
    for row in admin.rows(sql, &home).await?.into_iter().take(AT_MOST) {
        let name: String = row.get(0);
        if !admin.try_lock(&name).await? {
            continue;
        }
        // Without force: if somebody is still connected, then it is no leftover.
        if let Err(error) = admin.run("drop", &name, format!("drop database if exists {name}")).await {
            tracing::debug!(database = name, %error, "the database of a killed test stays for now");
        }
        admin.unlock(&name).await?;
    }
    Ok(())
}
