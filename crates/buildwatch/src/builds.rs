//! The rows of builds.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use db_layer::encryption::{Column, Columns, EncryptionError, KeyType, Sealed};
use db_layer::{Db, Error, Handle, LogId, Tx};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::output::End;
use crate::status::Status;

/// What a build runs, sealed in the database, since a command line often holds secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) command: Vec<String>,
    pub(crate) folder: String,
    /// Names only, since values may be secrets.
    pub(crate) environment: Vec<String>,
}

impl Plan {
    /// The plan of running a command in a folder, with this process's environment.
    pub(crate) fn of(command: &[OsString], folder: &Path) -> Self {
        let text = |os: &OsString| os.to_string_lossy().into_owned();
        let mut environment: Vec<String> = std::env::vars_os().map(|(name, _)| text(&name)).collect();
        environment.sort_unstable();
        Self {
            command: command.iter().map(text).collect(),
            folder: folder.to_string_lossy().into_owned(),
            environment,
        }
    }
}

/// A build as clients see it.
#[derive(Debug, Serialize)]
pub(crate) struct Build {
    pub(crate) id: i64,
    #[serde(skip)]
    pub(crate) log: LogId,
    pub(crate) status: Status,
    pub(crate) exit_code: Option<i32>,
    /// `null` if the plan was sealed under a key that this process does not have.
    pub(crate) command: Option<Vec<String>>,
    pub(crate) folder: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) ended_at: Option<OffsetDateTime>,
    /// `null` while it runs.
    pub(crate) took_ms: Option<i64>,
}

struct Row {
    id: i64,
    log: i64,
    plan: Sealed<Plan>,
    status: String,
    exit_code: Option<i32>,
    created_at: OffsetDateTime,
    ended_at: Option<OffsetDateTime>,
    took_ms: Option<i64>,
}

/// The sealed column of the plans, and which could not be unsealed and are logged already: each missing key is logged once, and each row
/// with another fault.
#[derive(Debug)]
pub(crate) struct Plans {
    column: Column<Plan>,
    said: Mutex<BTreeSet<String>>,
}

impl Plans {
    pub(crate) fn declare(columns: &Columns) -> Self {
        let column = columns.declare("builds", "plan").key("id", KeyType::BigInt).json();
        Self { column, said: Mutex::default() }
    }

    /// The declaration alone, for commands about keys.
    pub(crate) fn columns() -> Columns {
        let columns = Columns::default();
        Self::declare(&columns);
        columns
    }

    /// Limit of remembered keys and rows; nothing new is logged after it.
    const MOST: usize = 1_000;

    fn warn(&self, error: &EncryptionError) {
        let what = match error {
            EncryptionError::UnknownKey { key_id, .. } => key_id.to_string(),
            other => other.to_string(),
        };
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() >= Self::MOST || !said.insert(what) {
            return;
        }
        match error {
            EncryptionError::UnknownKey { key_id, .. } => {
                tracing::warn!(
                    %key_id,
                    "cannot show plans: they are sealed under a key that this process does not have"
                );
            }
            other => tracing::warn!(error = %other, "cannot show a plan"),
        }
    }
}

impl Row {
    fn unseal(self, plans: &Plans) -> Build {
        let plan = plans.column.unseal(self.id, &self.plan).inspect_err(|error| plans.warn(error)).ok();
        let (command, folder) = plan.map(|plan| (plan.command, plan.folder)).unzip();
        Build {
            id: self.id,
            log: LogId(self.log),
            status: Status::from_column(&self.status),
            exit_code: self.exit_code,
            command,
            folder,
            created_at: self.created_at,
            ended_at: self.ended_at,
            took_ms: self.took_ms,
        }
    }
}

/// Stores a new build with an empty log.
pub(crate) async fn create(db: &Db, plans: &Plans, plan: &Plan) -> anyhow::Result<(i64, LogId)> {
    db.backend()
        .tx(async |tx| {
            // The row's number is sealed into the plan, so it must be known first.
            let id =
                sqlx::query_scalar!(r#"select nextval(pg_get_serial_sequence('builds', 'id')) as "id!""#)
                    .fetch_one(&mut *tx)
                    .await
                    .map_err(Error::from)?;
            let log = db.events().create_in(tx).await?;
            let sealed = plans.column.seal(id, plan)?;
            sqlx::query!(
                "insert into builds (id, log, plan) values ($1, $2, $3)",
                id,
                log.0,
                sealed.as_bytes()
            )
            .execute(&mut *tx)
            .await
            .map_err(Error::from)?;
            Ok((id, log))
        })
        .await
}

/// The newest builds, the newest first.
pub(crate) async fn newest(api: &Handle, plans: &Plans, limit: i64) -> Result<Vec<Build>, Error> {
    let rows = sqlx::query_as!(
        Row,
        r#"select id, log, plan as "plan: Sealed<Plan>", status, exit_code, created_at, ended_at, took_ms
        from builds
        order by id desc
        limit $1"#,
        limit
    )
    .fetch_all(api)
    .await?;
    Ok(rows.into_iter().map(|row| row.unseal(plans)).collect())
}

/// The build with this number, if any.
pub(crate) async fn find(api: &Handle, plans: &Plans, id: i64) -> Result<Option<Build>, Error> {
    let row = sqlx::query_as!(
        Row,
        r#"select id, log, plan as "plan: Sealed<Plan>", status, exit_code, created_at, ended_at, took_ms
        from builds
        where id = $1"#,
        id
    )
    .fetch_optional(api)
    .await?;
    Ok(row.map(|row| row.unseal(plans)))
}

/// The log of the build with this number, if any.
pub(crate) async fn log_of(api: &Handle, id: i64) -> Result<Option<LogId>, Error> {
    let log = sqlx::query_scalar!("select log from builds where id = $1", id).fetch_optional(api).await?;
    Ok(log.map(LogId))
}

/// Stores how a build ended, in the transaction that finishes its log.
pub(crate) async fn end(tx: &mut Tx, id: i64, end: &End) -> Result<(), Error> {
    sqlx::query!(
        "update builds
        set status = $2, exit_code = $3, ended_at = now(), took_ms = extract(epoch from now() - created_at) * 1000
        where id = $1 and status = 'running'",
        id,
        end.status.as_str(),
        end.exit_code
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Stores that the process of a build is alive.
pub(crate) async fn seen(db: &Db, id: i64) -> Result<(), Error> {
    sqlx::query!("update builds set seen_at = now() where id = $1 and status = 'running'", id)
        .execute(db.backend())
        .await?;
    Ok(())
}

/// Running builds, with their logs and the time when their process last called [`seen`].
pub(crate) async fn running(db: &Db) -> Result<Vec<(i64, LogId, OffsetDateTime)>, Error> {
    let rows = sqlx::query!("select id, log, seen_at from builds where status = 'running' order by id")
        .fetch_all(db.backend())
        .await?;
    Ok(rows.into_iter().map(|row| (row.id, LogId(row.log), row.seen_at)).collect())
}
