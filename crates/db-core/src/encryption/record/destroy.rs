//! Destroying a key: the columns refuse its values, and PostgreSQL has counted that there are none.

use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::AssertSqlSafe;

use super::{KeyRecord, KeyRecordError, KeyState, bytes, set_state, state};
use crate::encryption::{Columns, Declared, KeyId};
use crate::{Error, TxOptions};

/// Limit for the wait for a table's lock, in which nobody else uses the table. It is tried some times.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
const LOCK_TRIES: usize = 5;

impl KeyRecord {
    /// Destroys a retired key on record: no value of the declared columns is sealed under it any more, and none ever will be. Each
    /// column gets a check constraint that refuses such a value, also from a process that sealed it long ago and was frozen since
    /// (23514). Validating the constraint counts the values that are there.
    ///
    /// When it fails, the constraints are removed, and the key stays retired. Dropping the future may leave a constraint that is not
    /// valid; calling it again goes on from there.
    ///
    /// # Errors
    ///
    /// [`KeyRecordError::Needed`] with the number of values in each column, [`KeyRecordError::InUse`],
    /// [`KeyRecordError::NotOnRecord`], [`KeyRecordError::WrongState`], [`KeyRecordError::NoTables`],
    /// [`KeyRecordError::Database`].
    pub async fn destroy(&self, id: KeyId, columns: &Columns, by: &str) -> Result<(), KeyRecordError> {
        self.check_unused(id).await?;
        let columns: Vec<Declared> =
            columns.declared().into_iter().filter(|column| !column.is_index()).collect();
        self.check_not_needed(id, &columns).await?;
        for column in &columns {
            if let Err(error) = self.refuse_in(column, id).await {
                for column in &columns {
                    self.admit_in(column, id).await?;
                }
                return Err(error);
            }
        }
        let failed = KeyRecordError::database("destroy an encryption key");
        self.locked(&failed, async |tx| {
            sqlx::query("update sealing_keys set wrapped = null where id = $1")
                .bind(bytes(id))
                .execute(&mut *tx)
                .await
                .map_err(Error::from)
                .map_err(&failed)?;
            set_state(tx, id, KeyState::Destroyed, by).await.map_err(&failed)
        })
        .await
    }

    /// Whether the key is retired, and no living process seals under it.
    async fn check_unused(&self, id: KeyId) -> Result<(), KeyRecordError> {
        let failed = KeyRecordError::database("look who uses an encryption key");
        let by: Vec<String> = self
            .locked(&failed, async |tx| {
                match state(tx, id).await.map_err(&failed)? {
                    None => return Err(KeyRecordError::NotOnRecord(id)),
                    Some(KeyState::Retired) => {}
                    Some(state) => return Err(KeyRecordError::WrongState { id, state, wanted: "retired" }),
                }
                sqlx::query_scalar(
                    "select name from sealing_key_holders
                     where expires > clock_timestamp() and seals_under = $1
                     order by name",
                )
                .bind(bytes(id))
                .fetch_all(tx)
                .await
                .map_err(Error::from)
                .map_err(&failed)
            })
            .await?;
        if by.is_empty() { Ok(()) } else { Err(KeyRecordError::InUse { id, by: by.join("; ") }) }
    }

    /// The whole table is read, so the limit is that of the pool's statements.
    async fn check_not_needed(&self, id: KeyId, columns: &[Declared]) -> Result<(), KeyRecordError> {
        let mut left = Vec::new();
        for column in columns {
            let sql =
                format!("select count(*) from {} where ({}) = $1", column.relation(), column.header_sql());
            let count: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
                .bind(id.to_string())
                .fetch_one(self.pool.handle())
                .await
                .map_err(Error::from)
                .map_err(KeyRecordError::database("count the values under an encryption key"))?;
            if count > 0 {
                left.push(format!("{column} has {count} of its values"));
            }
        }
        if left.is_empty() { Ok(()) } else { Err(KeyRecordError::Needed { id, left: left.join(", ") }) }
    }

    async fn refuse_in(&self, column: &Declared, id: KeyId) -> Result<(), KeyRecordError> {
        let (relation, constraint) = (column.relation(), constraint(column, id));
        // Two statements: adding the constraint locks the table for a moment, and reading all rows only blocks other changes of
        // the table.
        let add = format!(
            "do $$ begin
               alter table {relation} add constraint {constraint}
                 check (({}) is distinct from '{id}') not valid;
             exception when duplicate_object then null;
             end $$",
            column.header_sql()
        );
        self.alter(&add).await?;
        match self.alter(&format!("alter table {relation} validate constraint {constraint}")).await {
            Err(KeyRecordError::Database { cause, .. }) if cause.sqlstate().as_deref() == Some("23514") => {
                Err(KeyRecordError::Needed {
                    id,
                    left: format!("{column} has values of it since a moment ago"),
                })
            }
            done => done,
        }
    }

    async fn admit_in(&self, column: &Declared, id: KeyId) -> Result<(), KeyRecordError> {
        let constraint = constraint(column, id);
        self.alter(&format!("alter table {} drop constraint if exists {constraint}", column.relation())).await
    }

    /// Changes a table, and gives way to others that wait for it.
    async fn alter(&self, sql: &str) -> Result<(), KeyRecordError> {
        let failed = KeyRecordError::database("make a column refuse the values of an encryption key");
        let mut tries = 0;
        loop {
            tries += 1;
            let options = TxOptions::default().read_write().lock_timeout(LOCK_LIMIT);
            let mut tx = self.pool.handle().begin_with(options).await.map_err(&failed)?;
            let altered = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut tx).await.map_err(Error::from);
            match altered {
                Ok(_) => return tx.commit().await.map_err(failed),
                Err(error) if error.sqlstate().as_deref() == Some("55P03") && tries < LOCK_TRIES => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

/// The constraint's name, short enough for any column.
fn constraint(column: &Declared, id: KeyId) -> String {
    let digest = Sha256::digest(column.stored_column().as_bytes());
    format!("not_sealed_under_{id}_{}", const_hex::encode(&digest[..4]))
}
