//! Drops the databases of tests that were killed.

use sqlx::Row;

use crate::admin::Admin;
use crate::error::Error;

/// One test shall not clean up after all killed tests of a day.
const AT_MOST: usize = 4;

/// Drops a few databases whose lock is free. Needs one query if there is none.
///
/// Safe while other tests create theirs: a lock is taken before its database exists, and released, by the end of the session,
/// after the database is gone.
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
        // Without force: a database with a session in it is still in use.
        if let Err(error) = admin.run("drop", &name, format!("drop database if exists {name}")).await {
            tracing::debug!(database = name, %error, "the database of a killed test could not be dropped");
        }
        admin.unlock(&name).await?;
    }
    Ok(())
}
